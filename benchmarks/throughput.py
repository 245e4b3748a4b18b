"""Training and evaluation throughput: ``python -m benchmarks.throughput``; see benchmarks/README.md.

Three sides do the same work and are timed in turn, again and again, in one process, so that whatever else the machine
does hits them alike; a ratio is taken within each turn:

    ours: `AlternatingTcmrTrainer.train` and `hf_msa.evaluation.sweep.sweep`, as a user runs them.
    reference: the same with the habits of `benchmarks.reference`.
    bare: the text encoder's passes alone, on our batches: what no implementation can avoid.
"""

import argparse
import gc
import logging
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FrameMissing, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.evaluation.sweep import sweep
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis, TcmrPolarityClassifier
from hf_msa.training.arguments import MsaTrainingArguments
from hf_msa.training.tcmr import AlternatingTcmrTrainer
from hf_msa.training.trainer import row_costs

from .reference import ReferenceTcmr, reference_sweep
from .report import GOALS, render, write
from .shapes import MOSI, TOY, TextModel, generated_rows, processor, tcmr_config, text_model

SIDES = ("ours", "reference", "bare")
TASKS = ("training", "sweep")
_PHASES = ("phase A", "phase B")
# At fixed padding every row costs the same, so that a part of the rows tells the throughput of all.
_REFERENCE_TRAINING_SHARE = 4
_REFERENCE_SWEEP_SHARE = 32


@dataclass(frozen=True)
class Setting:
    """What is measured; the defaults are those of the full benchmark.

    Args:
        text_model: Folder or Hub name of a checkpoint; None: random weights.
        rows: Rows of the training split and of the evaluated split.
        batch_size: Rows per training batch; the sweep takes twice as many.
        repeats: Measured turns.
        threads: Threads of torch.
        toy: Small shapes and a tiny text encoder, to see that the benchmark runs.
    """

    text_model: str | None = None
    rows: int = 512
    batch_size: int = 64
    repeats: int = 5
    threads: int = 2
    toy: bool = False

    @property
    def reference_rows(self) -> int:
        """Rows of the reference's training: whole batches."""
        return max(1, self.rows // _REFERENCE_TRAINING_SHARE // self.batch_size) * self.batch_size

    @property
    def reference_sweep_rows(self) -> int:
        """Rows of the reference's sweep."""
        return max(2, self.rows // _REFERENCE_SWEEP_SHARE)


def device() -> torch.device:
    """Where the benchmark runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def uses_bf16() -> bool:
    """Whether training autocasts to bfloat16: where `hf-msa train` would."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def synchronize() -> None:
    """Wait for what was started on the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Peak memory in bytes: of the process so far on a CPU, of tensors since the last reading on a GPU."""
    if torch.cuda.is_available():
        peak = int(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class PhaseClock(TrainerCallback):
    """Times the two phases of an epoch, and reads the peak memory at the end of each.

    Args:
        steps: Optimizer steps of one phase.
        peaks: Where to put the readings.
    """

    def __init__(self, steps: int, peaks: dict[str, int]) -> None:
        self.steps = steps
        self.peaks = peaks
        self.marks: list[float] = []

    def _mark(self) -> None:
        synchronize()
        self.marks.append(time.perf_counter())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.marks = []
        self._mark()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the end of a phase."""
        if state.global_step % self.steps == 0:
            self._mark()
            self.peaks[_PHASES[len(self.marks) - 2]] = peak_memory()

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase."""
        return {name: end - start for name, start, end in zip(_PHASES, self.marks, self.marks[1:], strict=False)}


class Bench:
    """Everything that is timed, for one setting. `peaks` holds the last peak memory of each training phase.

    Args:
        setting: What to measure.
        folder: For the trainer's files, of which it writes none.
    """

    def __init__(self, setting: Setting, folder: str) -> None:
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.setting = setting
        self.folder = folder
        self.peaks: dict[str, int] = {}
        self.shapes = TOY if setting.toy else MOSI
        self.text: TextModel = text_model(setting.text_model, self.shapes)
        self.config = tcmr_config(self.shapes)
        self.processor = processor(self.shapes, self.text.tokenizer)

    def rows(self, count: int, split: str) -> MsaRows:
        """Generated rows."""
        return generated_rows(self.shapes, count, split, self.text.tokenizer)

    def trainer(self, rows: MsaRows, model_class: type[Any] | None = None) -> AlternatingTcmrTrainer:
        """The trainer of both phases, for us or, with another model class, for the reference."""
        reference = model_class is not None
        model = self.text.build(model_class or TcmrForSentimentAnalysis, self.config)
        protocol = FrameMissing(rate_range=(0.0, 1.0))
        arguments = MsaTrainingArguments(
            output_dir=self.folder,
            num_train_epochs=1,
            per_device_train_batch_size=self.setting.batch_size,
            learning_rate=1e-4,
            weight_decay=1e-4,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            load_best_model_at_end=False,
            train_sampling_strategy="random" if reference else "group_by_length",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=uses_bf16(),
        )
        trainer = AlternatingTcmrTrainer(
            model,
            arguments,
            rows,
            rows,
            MsaCollator(self.processor, protocol, return_complete=True, pad_to_fixed=reference),
            MsaCollator(self.processor, protocol, pad_to_fixed=reference),
            classifier=self.text.build(TcmrPolarityClassifier, self.config),
            text_targets=torch.randn(len(rows), self.config.num_tokens, self.config.hidden_size).half(),
            objective="other",
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def ours_training(self) -> Callable[[], dict[str, float]]:
        """Seconds per phase of one epoch of `AlternatingTcmrTrainer.train`."""
        return self._epoch(self.trainer(self.rows(self.setting.rows, "train")))

    def reference_training(self) -> Callable[[], dict[str, float]]:
        """The same for the reference, on fewer rows."""
        return self._epoch(self.trainer(self.rows(self.setting.reference_rows, "train"), ReferenceTcmr))

    def text_encoder(self) -> Any:
        """The text encoder alone, in eval mode, on the device."""
        return self.text.build(TcmrPolarityClassifier, self.config).text_encoder.to(device()).eval()

    def _epoch(self, trainer: AlternatingTcmrTrainer) -> Callable[[], dict[str, float]]:
        rows = len(trainer.train_rows)
        clock = PhaseClock(-(-rows // self.setting.batch_size), self.peaks)
        trainer.add_callback(clock)

        def run() -> dict[str, float]:
            trainer.train()
            return {name: seconds / rows for name, seconds in clock.seconds().items()}

        return run

    def bare_training(self) -> Callable[[], dict[str, float]]:
        """Per phase, the text encoder's passes on the batches of our epoch: no optimizer, no collation, no fusion."""
        trainer = self.trainer(self.rows(self.setting.rows, "train"))
        encoder = self.text_encoder().train()
        frozen = self.text_encoder()
        batches: dict[str, list[dict[str, Tensor]]] = {name: [] for name in _PHASES}
        for batch in trainer.get_train_dataloader():
            given = {name: batch[name].to(device()) for name in ("input_ids", "attention_mask")}
            batches[_PHASES[int(batch["draw"][0]) % 2]].append(given)

        def passes(phase: str) -> None:
            for given in batches[phase]:
                with self._precision():
                    if phase == _PHASES[0]:
                        with torch.no_grad():
                            frozen(**given)
                    hidden = encoder(**given).last_hidden_state
                # ConfNet reads the first position, the rest of the model all others.
                (hidden[:, 0] if phase == _PHASES[0] else hidden[:, 1:]).float().mean().backward()
                encoder.zero_grad(set_to_none=True)

        def run() -> dict[str, float]:
            seconds = {}
            for phase in _PHASES:
                seconds[phase] = timed(passes, phase) / self.setting.rows
                self.peaks[phase] = peak_memory()
            return seconds

        return run

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(device().type, torch.bfloat16, enabled=uses_bf16())

    def _tested(self) -> Sequence[Any]:
        return conditions("frame", self.config.modalities, None, (1111,))

    def ours_sweep(self) -> Callable[[], dict[str, float]]:
        """Seconds per row and rate of `hf_msa.evaluation.sweep.sweep`."""
        model = self.text.build(TcmrForSentimentAnalysis, self.config).to(device()).eval()
        rows, tested = self.rows(self.setting.rows, "test"), self._tested()
        arguments = (model, self.processor, rows, tested, 2 * self.setting.batch_size)
        return lambda: {"sweep": timed(sweep, *arguments) / len(rows) / len(tested)}

    def reference_sweep(self) -> Callable[[], dict[str, float]]:
        """The same for the reference, on fewer rows."""
        model = self.text.build(ReferenceTcmr, self.config).to(device()).eval()
        rows, tested = self.rows(self.setting.reference_sweep_rows, "test"), self._tested()
        arguments = (model, self.processor, rows, tested)
        return lambda: {"sweep": timed(reference_sweep, *arguments) / len(rows) / len(tested)}

    def bare_sweep(self) -> Callable[[], dict[str, float]]:
        """The text encoder's forward of every row at every rate, in the sweep's batches."""
        encoder = self.text_encoder()
        rows, tested = self.rows(self.setting.rows, "test"), self._tested()
        order = np.argsort(row_costs(rows), kind="stable")
        size = 2 * self.setting.batch_size
        collator = MsaCollator(self.processor)
        batches = []
        for start in range(0, len(order), size):
            batch = collator([rows[int(index)] for index in order[start : start + size]])
            batches.append({name: batch[name].to(device()) for name in ("input_ids", "attention_mask")})

        @torch.inference_mode()
        def run() -> None:
            for given in batches:
                for _ in tested:
                    encoder(**given)

        return lambda: {"sweep": timed(run) / len(rows) / len(tested)}


def timed(run: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that a call takes, what it started on the device included."""
    synchronize()
    started = time.perf_counter()
    run(*arguments)
    synchronize()
    return time.perf_counter() - started


def peaks_of(setting: Setting, side: str, task: str) -> dict[str, dict[str, int]]:
    """Peak memory of one side of one task; to be called in a process of its own.

    Returns:
        By phase (or ``"sweep"``) the `peak` in bytes, and what it was when everything was `loaded`.
    """
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(setting, folder)
        run = getattr(bench, f"{side}_{task}")()
        loaded = peak_memory()
        run()
        peaks = bench.peaks or {"sweep": peak_memory()}
    return {name: {"loaded": loaded, "peak": peak} for name, peak in peaks.items()}


def all_peaks(setting: Setting) -> dict[str, dict[str, dict[str, int]]]:
    """Peak memory by measurement and side, each side of each task in a fresh process."""
    # A server that has loaded nothing forks the processes: one forked from here would start at this process's peak.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([])
    found: dict[str, dict[str, dict[str, int]]] = {}
    for task in TASKS:
        for side in SIDES:
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                for name, sizes in pool.submit(peaks_of, setting, side, task).result().items():
                    found.setdefault(name, {})[side] = sizes
    return found


def turns(sides: dict[str, Callable[[], dict[str, float]]], repeats: int) -> list[dict[str, dict[str, float]]]:
    """Time all sides in turn, once to warm up and then `repeats` times.

    Returns:
        Per turn, by side and measurement, the seconds per sample.
    """
    found = []
    for _ in range(repeats + 1):
        turn = {}
        for name, run in sides.items():
            gc.collect()
            turn[name] = run()
        found.append(turn)
    return found[1:]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    values = sorted(values)
    return {"median": statistics.median(values), "low": values[0], "high": values[-1]}


def summarise(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Samples per second of each side, and the two ratios, taken within each turn; `found` is from `turns`."""
    result: dict[str, Any] = {}
    for name in found[0]["ours"]:
        seconds = {side: [turn[side][name] for turn in found] for side in SIDES}
        result[name] = {
            "samples_per_second": {side: spread(1 / value for value in values) for side, values in seconds.items()},
            "times_reference": spread(r / o for r, o in zip(seconds["reference"], seconds["ours"], strict=True)),
            "over_bare": spread(o / b for o, b in zip(seconds["ours"], seconds["bare"], strict=True)),
        }
    return result


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on; no names."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": torch.multiprocessing.cpu_count(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "precision": "bfloat16 autocast in training" if uses_bf16() else "float32",
    }


def measure(setting: Setting, memory: bool = True) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        setting: What to measure.
        memory: Also measure peak memory, which takes six processes.

    Returns:
        What benchmark.json holds.
    """
    quiet()
    peaks = all_peaks(setting) if memory else {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(setting, folder)
        training = {side: getattr(bench, f"{side}_training")() for side in SIDES}
        epochs = turns(training, setting.repeats)
        for turn in epochs:
            for phases in turn.values():
                # One epoch sees every row once in each phase.
                phases["epoch"] = sum(phases[name] for name in _PHASES)
        del training
        measured = summarise(epochs)
        measured |= summarise(turns({side: getattr(bench, f"{side}_sweep")() for side in SIDES}, setting.repeats))
    for name, sizes in peaks.items():
        measured[name]["memory"] = sizes
    shapes = bench.shapes
    return {
        "schema_version": 1,
        "machine": machine(setting.threads),
        "setting": {
            "text_model": bench.text.name,
            "rows": setting.rows,
            "reference_rows": {"training": setting.reference_rows, "sweep": setting.reference_sweep_rows},
            "batch_size": {"training": setting.batch_size, "sweep": 2 * setting.batch_size, "reference_sweep": 1},
            "repeats": setting.repeats,
            "rates": len(bench._tested()),
            "shapes": {
                "text": [shapes.text],
                "audio": [shapes.audio, shapes.audio_dim],
                "vision": [shapes.vision, shapes.vision_dim],
            },
            "mean_lengths": {
                name: round(float(lengths.mean()), 1)
                for name, lengths in bench.rows(setting.rows, "train").lengths.items()
            },
        },
        "goals": GOALS,
        "measured": measured,
    }


def quiet() -> None:
    """Keep progress bars and notices of the libraries out of the output."""
    import datasets
    import transformers

    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def parse(name: str, description: str, arguments: Sequence[str] | None) -> tuple[Setting, Path | None]:
    """Read what is to be measured, and where to write it, from the command line.

    Args:
        name: The benchmark, as in ``python -m benchmarks.<name>``.
        description: Its first line of help.
        arguments: The command line; None: that of the process.
    """
    defaults = Setting()
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--text-model", help="folder or Hub name of a BERT-family checkpoint; default: random weights")
    parser.add_argument("--rows", type=int, default=defaults.rows, help="rows per split (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=defaults.repeats, help="measured turns (default %(default)s)")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that the benchmark runs")
    parser.add_argument("--output", type=Path, help="folder for the numbers as JSON and the table as Markdown")
    given = parser.parse_args(arguments)
    for field in ("rows", "batch_size", "repeats", "threads"):
        if getattr(given, field) < 1:
            parser.error(f"--{field.replace('_', '-')} is {getattr(given, field)}; give at least 1.")
    if given.quick:
        given.rows, given.batch_size, given.repeats = 16, 8, 1
    setting = Setting(given.text_model, given.rows, given.batch_size, given.repeats, given.threads, given.quick)
    return setting, given.output


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the benchmark."""
    setting, output = parse("throughput", __doc__.splitlines()[0], arguments)
    content = measure(setting)
    render(content)
    if output is not None:
        write(content, output)


if __name__ == "__main__":
    main()
