"""Throughput of U-ACS against its expert alone: ``python -m benchmarks.cascade``; see benchmarks/README.md.

At several shares of samples that are handed on, the cascade as `evaluate` runs it, next to the ideal: seconds of the small
model per sample plus seconds of the expert alone per question, times questions per sample. All are timed in turn, and a
ratio is taken within each turn. Experts: a stub that takes a fixed time per call, and a Qwen2.5-Omni thinker with
random weights, tiny or (``--shapes``) of the true sizes in bfloat16, for which memory and training of an adapter are
measured as well.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import PrinterCallback

from hf_msa.data.missing import conditions
from hf_msa.data.rows import MsaRows
from hf_msa.evaluation.sweep import sweep
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_uacs import UacsForSentimentAnalysis
from hf_msa.models.msa_mllm import LocalMllm, Mllm, MllmRequest
from hf_msa.models.msa_mllm_answers import MllmAnswer
from hf_msa.models.msa_mllm_forms import AnswerForm
from hf_msa.models.msa_verbalizer import MsaVerbalizer

from .report import write_both
from .shapes import MOSI, TOY, generated_rows, processor, shape_fields, text_model
from .thinker import SHAPES, Clips, thinker
from .throughput import device, machine, peak_memory, quiet, spread, synchronize, turns, uses_bf16

RATES = (0.0, 0.1, 0.25, 0.5, 1.0)
ASKED_TWICE = (0.1, 0.5)
GOAL = 0.9
_EXAMPLES = 32


@dataclass(frozen=True)
class Setting:
    """What is measured; the defaults are those of the full benchmark.

    Args:
        text_model: Folder or Hub name of the small model's text encoder; None: random weights.
        rows: Rows that are predicted with the stub; default: as many as MOSI's test split has.
        thinker_rows: With the thinker.
        batch_size: Rows per batch of the small model.
        expert_batch_size: Requests that the expert answers together.
        call_seconds: What such a call costs the stub, however many requests are in it.
        repeats: Measured turns.
        threads: Threads of torch.
        shapes: Sizes of the thinker, a name in `SHAPES`.
        toy: Small shapes and a tiny text encoder, to see that the benchmark runs.
    """

    text_model: str | None = None
    rows: int = 686
    thinker_rows: int = 128
    batch_size: int = 128
    expert_batch_size: int = 8
    call_seconds: float = 0.1
    repeats: int = 5
    threads: int = 1
    shapes: str = "tiny"
    toy: bool = False


class StubExpert:
    """An `Mllm` that takes the same time for every call of at most `batch_size` requests, and answers 0 to all.

    Args:
        call_seconds: The time.
        batch_size: Requests that one call answers.

    Attributes:
        seconds: What it has taken so far; nobody waits, `CascadeBench` adds it to the time that went by.
    """

    name = "stub"

    def __init__(self, call_seconds: float, batch_size: int) -> None:
        self.call_seconds = call_seconds
        self.batch_size = batch_size
        self.seconds = 0.0

    def generate(
        self,
        requests: Sequence[MllmRequest],
        max_new_tokens: int,
        num_candidates: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        only_number: bool | tuple[float, float] = False,
        form: AnswerForm | None = None,
    ) -> list[list[MllmAnswer]]:
        """Answer, and take the time."""
        self.seconds += self.call_seconds * math.ceil(len(requests) / self.batch_size)
        return [[MllmAnswer("0.0", ("0", ".", "0", ""), (0.5,) * 4, (-0.5,) * 4)] for _ in requests]

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        """Not needed here."""
        raise NotImplementedError


class CascadeBench:
    """Everything that is timed, for one setting and one expert.

    Args:
        setting: What to measure.
        stub: Whether the expert is the stub.
    """

    def __init__(self, setting: Setting, stub: bool) -> None:
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.setting = setting
        shapes = TOY if setting.toy else MOSI
        self.text = text_model(setting.text_model, shapes)
        self.processor = processor(shapes, self.text.tokenizer)
        rows = generated_rows(shapes, setting.rows if stub else setting.thinker_rows, "test", self.text.tokenizer)
        self.rows: MsaRows = rows if stub else Clips(rows, SHAPES[setting.shapes])
        fields = {**shape_fields(shapes), "expert_batch_size": setting.expert_batch_size, "neutral_zone": 0.0}
        if setting.toy:
            fields["expert_max_new_tokens"] = 4
        self.model: UacsForSentimentAnalysis = self.text.build(UacsForSentimentAnalysis, UacsConfig(**fields))
        self.model.to(device()).eval()
        members = [rows[index] for index in range(len(rows))]
        names = {m: [f"{m} {n}" for n in range(getattr(self.model.config, f"{m}_dim"))] for m in ("audio", "vision")}
        self.model.verbalizer = MsaVerbalizer.fit(members, names)
        self.requests = self.model.expert_requests([self.rows[index] for index in range(len(rows))])
        self.expert: Mllm = (
            StubExpert(setting.call_seconds, setting.expert_batch_size)
            if stub
            else thinker(
                SHAPES[setting.shapes],
                [request.prompt for request in self.requests],
                device(),
                torch.float32 if setting.shapes == "tiny" else torch.bfloat16,
                setting.expert_batch_size,
            )
        )
        self.model.set_expert(self.expert)
        self.loaded = peak_memory()
        self.unsure = np.sort(self._sweep("fast")["uncertainty"])

    def _sweep(self, route: str, tau_1: float = math.inf, tau_2: float = math.inf) -> dict[str, Any]:
        # Which forgets what it has answered.
        self.model.set_expert(self.expert)
        config = self.model.config
        config.route, config.tau_1, config.tau_2 = route, tau_1, tau_2  # type: ignore[assignment]  # one of the routes
        tested = conditions("complete", config.modalities, None, (1111,))
        (found,), _ = sweep(self.model, self.processor, self.rows, tested, self.setting.batch_size)
        return found

    def _timed(self, run: Callable[..., Any], *arguments: Any) -> float:
        """Seconds that a call takes, the stub's included.

        On a CPU those that this process computes, which other load on the machine hardly changes.
        """
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time

        def now() -> float:
            synchronize()
            return clock() + (self.expert.seconds if isinstance(self.expert, StubExpert) else 0.0)

        started = now()
        run(*arguments)
        return now() - started

    def sides(self, twice: Sequence[float] = ()) -> dict[str, Callable[[], dict[str, float]]]:
        """The small model, the expert alone, and the cascade at every rate.

        Args:
            twice: Rates at which every sample that is handed on is asked about twice, in addition.
        """
        return {
            "small": self._small,
            "expert": self._expert,
            **{f"{rate:g}": self._cascade(rate, math.inf) for rate in RATES},
            **{f"{rate:g} twice": self._cascade(rate, -math.inf) for rate in twice},
        }

    def _small(self) -> dict[str, float]:
        return {"seconds": self._timed(self._sweep, "fast") / len(self.rows)}

    def _expert(self) -> dict[str, float]:
        count = self.model.config.expert_max_new_tokens
        return {"seconds": self._timed(self.expert.generate, self.requests, count) / len(self.requests)}

    def _cascade(self, rate: float, tau_2: float) -> Callable[[], dict[str, float]]:
        chosen = round(rate * len(self.unsure))
        ends = np.concatenate([[-math.inf], self.unsure, [math.inf]])
        # Between two samples, so that rounding does not decide.
        tau_1 = float(np.mean(ends[len(self.unsure) - chosen :][:2], dtype=np.float64))

        def run() -> dict[str, float]:
            found: dict[str, Any] = {}
            seconds = self._timed(lambda: found.update(self._sweep("cascade", tau_1, tau_2)))
            return {
                "seconds": seconds / len(self.rows),
                "questions": float(found["expert_calls"].mean(dtype=np.float64)),
            }

        return run

    def adapter(self, folder: str) -> Callable[[], dict[str, float]]:
        """Training of a LoRA adapter on a few clips, update for update as `hf-msa train` does it."""
        from hf_msa.training.lora import LoraTrainer, LoraTrainingArguments, MllmExample

        assert isinstance(self.expert, LocalMllm)
        arguments = LoraTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=uses_bf16(),
        )
        examples = [MllmExample(request, "0.0") for request in self.requests[:_EXAMPLES]]
        trainer = LoraTrainer(self.expert, arguments, examples, self.expert.name)
        trainer.remove_callback(PrinterCallback)
        return lambda: {"seconds": self._timed(trainer.train) / len(examples)}


def summarise(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Samples per second of every side, and of the cascades' the shares of the ideal and the multiples of the expert's.

    Args:
        found: From `turns`.
    """
    result: dict[str, Any] = {}
    for name in found[0]:
        result[name] = {"samples_per_second": spread(1 / turn[name]["seconds"] for turn in found)}
        if name in ("small", "expert"):
            continue
        questions = found[0][name]["questions"]
        ideal = [turn["small"]["seconds"] + questions * turn["expert"]["seconds"] for turn in found]
        result[name] |= {
            "questions_per_sample": questions,
            "ideal_samples_per_second": spread(1 / seconds for seconds in ideal),
            "of_ideal": spread(seconds / turn[name]["seconds"] for seconds, turn in zip(ideal, found, strict=True)),
            "times_expert": spread(turn["expert"]["seconds"] / turn[name]["seconds"] for turn in found),
        }
    return result


def measure(setting: Setting) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        setting: What to measure.

    Returns:
        What cascade.json holds.
    """
    quiet()
    measured: dict[str, Any] = {}
    if setting.shapes == "tiny":
        measured["stub"] = summarise(turns(CascadeBench(setting, stub=True).sides(ASKED_TWICE), setting.repeats))
    bench = CascadeBench(setting, stub=False)
    measured["thinker"] = summarise(turns(bench.sides(), setting.repeats))
    memory = {"loaded": bench.loaded, "cascade": peak_memory()}
    with tempfile.TemporaryDirectory() as folder:
        trained = turns({"adapter": bench.adapter(folder)}, setting.repeats)
    memory["adapter"] = peak_memory()
    measured["adapter"] = {"samples_per_second": spread(1 / turn["adapter"]["seconds"] for turn in trained)}
    assert isinstance(bench.expert, LocalMllm)
    return {
        "schema_version": 1,
        "machine": machine(setting.threads),
        "setting": {
            "text_model": bench.text.name,
            "shapes": setting.shapes,
            "parameters": sum(parameter.numel() for parameter in bench.expert.model.parameters()),
            "dtype": str(bench.expert.model.dtype).removeprefix("torch."),
            "rows": {"stub": setting.rows, "thinker": setting.thinker_rows},
            "batch_size": setting.batch_size,
            "expert_batch_size": setting.expert_batch_size,
            "call_seconds": setting.call_seconds,
            "repeats": setting.repeats,
        },
        "goal": GOAL,
        "measured": measured,
        "memory": memory,
    }


def markdown(content: dict[str, Any]) -> str:
    """The table and its conditions as Markdown."""
    about, where, memory = content["setting"], content["machine"], content["memory"]
    lines = [
        "| expert | handed on | samples/s | ideal | share of the ideal | times the expert alone |",
        "|" + "---|" * 6,
    ]
    for expert in ("stub", "thinker"):
        for name, found in content["measured"].get(expert, {}).items():
            speed = f"{found['samples_per_second']['median']:.1f}"
            if "of_ideal" not in found:
                label = {"small": "none: the small model alone", "expert": "all: the expert alone"}[name]
                lines.append(f"| {expert} | {label} | {speed} |  |  |  |")
                continue
            share, times = (
                f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"
                for values in (found["of_ideal"], found["times_expert"])
            )
            verdict = "reached" if found["of_ideal"]["median"] >= content["goal"] else "missed"
            share += f"; goal at least {content['goal']:g}: {verdict}"
            rate, _, again = name.partition(" ")
            lines.append(
                f"| {expert} | {float(rate):.0%}{', each asked ' + again if again else ''} | {speed} | "
                f"{found['ideal_samples_per_second']['median']:.1f} | {share} | {times} |"
            )
    kind = "of tensors" if where["device"] != "CPU" else "of the process"
    sizes = ", ".join(f"{size / 2**30:.1f} GiB {label}" for label, size in memory.items())
    stub = (
        f"The stub needs {about['call_seconds']} s per call of up to {about['expert_batch_size']} requests "
        f"({about['rows']['stub']} rows). "
        if "stub" in content["measured"]
        else ""
    )
    lines += [
        "",
        f"{stub}Thinker: Qwen2.5-Omni, {about['shapes']}, {about['parameters'] / 1e6:.1f} million random weights, "
        f"{about['dtype']}, {about['rows']['thinker']} rows with sound and pictures, {about['expert_batch_size']} requests "
        f"at a time; LoRA training {content['measured']['adapter']['samples_per_second']['median']:.1f} samples/s; peak "
        f"memory {kind}: {sizes}.",
        "",
        f"Small model: UBM with {about['text_model']}, generated rows of MOSI's unaligned shapes, batches of "
        f"{about['batch_size']}; medians, lowest and highest of {about['repeats']} turns. {where['device']}, "
        f"{where['architecture']} {where['system']}, {where['cpus']} CPUs, {where['threads']} threads, torch "
        f"{where['torch']}{'; seconds of computing' if where['device'] == 'CPU' else ''}.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the benchmark."""
    defaults = Setting()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cascade", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text-model", help="folder or Hub name of a BERT-family checkpoint; default: random weights")
    parser.add_argument(
        "--shapes", choices=list(SHAPES), default=defaults.shapes, help="of the thinker (default %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=defaults.rows, help="rows with the stub (default %(default)s)")
    parser.add_argument(
        "--thinker-rows", type=int, default=defaults.thinker_rows, help="rows with the thinker (default %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="default %(default)s")
    parser.add_argument(
        "--expert-batch-size", type=int, default=defaults.expert_batch_size, help="default %(default)s"
    )
    parser.add_argument("--repeats", type=int, default=defaults.repeats, help="measured turns (default %(default)s)")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that the benchmark runs")
    parser.add_argument("--output", type=Path, help="folder for cascade.json and cascade.md")
    given = parser.parse_args(arguments)
    for name in ("rows", "thinker_rows", "batch_size", "expert_batch_size", "repeats", "threads"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(given, name)}; give at least 1.")
    fields = {name: value for name, value in vars(given).items() if name not in ("quick", "output")}
    if given.quick:
        fields |= {"rows": 16, "thinker_rows": 16, "batch_size": 8, "repeats": 1}
    content = measure(Setting(**fields, toy=given.quick, call_seconds=0.01 if given.quick else defaults.call_seconds))
    print(markdown(content))
    if given.output is not None:
        write_both(given.output, "cascade", content, markdown(content))


if __name__ == "__main__":
    main()
