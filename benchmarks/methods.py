"""Training and inference throughput of every method: ``python -m benchmarks.methods``; see benchmarks/README.md.

Per method, one optimizer step after the other through its own trainer, and predictions of complete rows as `predict` and
`evaluate` make them. Both are set against the text encoder's passes alone on the same batches, which no method can avoid.
PGLH's inference is also set against its own training-time graph, which rebuilds what is missing.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_callback import PrinterCallback

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FrameMissing, conditions
from hf_msa.evaluation.sweep import sweep
from hf_msa.models.configuration_cmc import CmcConfig
from hf_msa.models.configuration_msa import MsaConfig
from hf_msa.models.configuration_pglh import PglhConfig
from hf_msa.models.configuration_ubm import UbmConfig
from hf_msa.models.modeling_cmc import CmcForSentimentAnalysis, CmcUnimodalModels
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_pglh import PglhForSentimentAnalysis
from hf_msa.models.modeling_ubm import UbmForSentimentAnalysis
from hf_msa.models.msa_label_families import BUILT_IN
from hf_msa.training.arguments import MsaTrainingArguments
from hf_msa.training.cmc.pseudo_labels import PseudoLabels
from hf_msa.training.cmc.stages import CmcTrainer, CmcUnimodalTrainer
from hf_msa.training.pglh import PglhTrainer
from hf_msa.training.trainer import MsaTrainer
from hf_msa.training.ubm import UbmTrainer

from .report import write_both
from .shapes import MOSI, TOY, generated_rows, processor, shape_fields, text_model
from .throughput import Setting, device, machine, parse, quiet, spread, timed, turns, uses_bf16

LABELS = {
    "pglh training": "PGLH, training",
    "cmc unimodal training": "CMC, training of the unimodal models",
    "cmc training": "CMC, training of the whole model",
    "ubm training": "UBM, training",
    "pglh inference": "PGLH, inference",
    "pglh training graph": "PGLH, forward of the training graph",
    "cmc inference": "CMC, inference",
    "ubm inference": "UBM, inference",
}
_BARE = {"training": "bare training", "inference": "bare inference"}


class MethodsBench:
    """Everything that is timed, for one setting.

    Args:
        setting: What to measure.
        folder: For the trainers' files.
    """

    def __init__(self, setting: Setting, folder: str) -> None:
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.setting = setting
        self.folder = folder
        self.shapes = TOY if setting.toy else MOSI
        self.text = text_model(setting.text_model, self.shapes)
        self.processor = processor(self.shapes, self.text.tokenizer)
        self.rows = generated_rows(self.shapes, setting.rows, "train", self.text.tokenizer)
        fields = shape_fields(self.shapes)
        self.pglh = PglhConfig(**fields)
        # The public code's settings for MOSI.
        self.cmc = CmcConfig(**fields, encoder_layers=2, num_attention_heads=4, head_dropout=0.5)
        self.ubm = UbmConfig(**fields)

    def build(self, model_class: type[Any], config: MsaConfig) -> Any:
        """A model around the text encoder."""
        return self.text.build(model_class, config)

    def trainer(self, name: str, kind: type[MsaTrainer], model: MsaPreTrainedModel, **options: Any) -> MsaTrainer:
        """A trainer of one epoch that neither validates nor saves."""
        missing = kind is PglhTrainer
        protocol = FrameMissing(rate_range=(0.0, 0.9)) if missing else None
        arguments = MsaTrainingArguments(
            output_dir=str(Path(self.folder) / name.replace(" ", "-")),
            num_train_epochs=1,
            per_device_train_batch_size=self.setting.batch_size,
            learning_rate=1e-4,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            load_best_model_at_end=False,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=uses_bf16(),
        )
        trainer = kind(
            model,
            arguments,
            self.rows,
            self.rows,
            MsaCollator(self.processor, protocol, return_complete=missing),
            MsaCollator(self.processor, protocol),
            **options,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def training(self) -> dict[str, Callable[[], dict[str, float]]]:
        """One epoch of each trainer, and the text encoder's passes alone."""
        classes = BUILT_IN["mosi"].polarity(torch.from_numpy(self.rows.labels)).unsqueeze(1)
        classes = classes.repeat(1, len(self.cmc.modalities))
        frozen = self.build(CmcUnimodalModels, self.cmc)
        frozen.text_encoder.requires_grad_(False)
        unimodal = self.trainer(
            "cmc unimodal training",
            CmcUnimodalTrainer,
            frozen,
            train_labels=self.labels(classes),
            validation_labels=self.labels(classes),
        )
        return {
            "pglh training": self._epoch(
                self.trainer("pglh training", PglhTrainer, self.build(PglhForSentimentAnalysis, self.pglh))
            ),
            "cmc unimodal training": self._epoch(unimodal),
            "cmc training": self._epoch(
                self.trainer(
                    "cmc training", CmcTrainer, self.build(CmcForSentimentAnalysis, self.cmc), targets=classes
                )
            ),
            "ubm training": self._epoch(
                self.trainer("ubm training", UbmTrainer, self.build(UbmForSentimentAnalysis, self.ubm))
            ),
            _BARE["training"]: self._bare(training=True),
        }

    def labels(self, classes: Tensor) -> PseudoLabels:
        """Pseudo labels of every modality, as a run begins."""
        momenta = [self.cmc.label_momentum[name] for name in self.cmc.modalities]
        return PseudoLabels(classes, momenta, [self.cmc.label_gamma] * len(momenta))

    def inference(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Predictions of complete rows, PGLH's forward with reconstruction, and the text encoder alone."""
        pglh = self.build(PglhForSentimentAnalysis, self.pglh).to(device()).eval()
        cmc = self.build(CmcForSentimentAnalysis, self.cmc).to(device()).eval()
        ubm = self.build(UbmForSentimentAnalysis, self.ubm).to(device()).eval()
        return {
            "pglh inference": self._sweep(pglh),
            "pglh training graph": self._training_graph(pglh),
            "cmc inference": self._sweep(cmc),
            "ubm inference": self._sweep(ubm),
            _BARE["inference"]: self._bare(training=False),
        }

    def _epoch(self, trainer: MsaTrainer) -> Callable[[], dict[str, float]]:
        return lambda: {"seconds": timed(trainer.train) / self.setting.rows}

    def _sweep(self, model: MsaPreTrainedModel) -> Callable[[], dict[str, float]]:
        tested = conditions("complete", model.config.modalities, None, (1111,))
        arguments = (model, self.processor, self.rows, tested, self.setting.batch_size)
        return lambda: {"seconds": timed(sweep, *arguments) / self.setting.rows}

    def _batches(self, **options: Any) -> list[dict[str, Tensor]]:
        order = sorted(range(len(self.rows)), key=lambda index: sum(v[index] for v in self.rows.lengths.values()))
        size = self.setting.batch_size
        collator = MsaCollator(self.processor, **options)
        return [
            {k: v.to(device()) for k, v in collator([self.rows[i] for i in order[start : start + size]]).items()}
            for start in range(0, len(order), size)
        ]

    def _training_graph(self, model: PglhForSentimentAnalysis) -> Callable[[], dict[str, float]]:
        """PGLH's forward with everything that training computes, on the same complete rows and without gradients."""

        @torch.inference_mode()
        def run() -> None:
            for batch in self._batches(return_complete=True):
                given = {k: v for k, v in batch.items() if k not in ("sample_index", "draw", "missing_rates")}
                model(**given)

        return lambda: {"seconds": timed(run) / self.setting.rows}

    def _bare(self, training: bool) -> Callable[[], dict[str, float]]:
        encoder = self.build(CmcUnimodalModels, self.cmc).text_encoder.to(device()).train(training)
        batches = [{k: b[k] for k in ("input_ids", "attention_mask")} for b in self._batches()]

        def run() -> None:
            with torch.set_grad_enabled(training):
                for batch in batches:
                    with torch.autocast(device().type, torch.bfloat16, enabled=training and uses_bf16()):
                        hidden = encoder(**batch).last_hidden_state
                    if training:
                        hidden.float().mean().backward()
                        encoder.zero_grad(set_to_none=True)

        return lambda: {"seconds": timed(run) / self.setting.rows}


def summarise(found: Sequence[dict[str, dict[str, float]]], bare: str) -> dict[str, Any]:
    """Samples per second of each measurement, and its time over the bare passes, taken within each turn."""
    result: dict[str, Any] = {}
    for name in found[0]:
        seconds = [turn[name]["seconds"] for turn in found]
        result[name] = {"samples_per_second": spread(1 / value for value in seconds)}
        if name != bare:
            result[name]["over_bare"] = spread(turn[name]["seconds"] / turn[bare]["seconds"] for turn in found)
    return result


def measure(setting: Setting) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        setting: What to measure.

    Returns:
        What methods.json holds.
    """
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        bench = MethodsBench(setting, folder)
        measured = summarise(turns(bench.training(), setting.repeats), _BARE["training"])
        predicted = turns(bench.inference(), setting.repeats)
        measured |= summarise(predicted, _BARE["inference"])
    measured["pglh inference"]["times_training_graph"] = spread(
        turn["pglh training graph"]["seconds"] / turn["pglh inference"]["seconds"] for turn in predicted
    )
    return {
        "schema_version": 1,
        "machine": machine(setting.threads),
        "setting": {
            "text_model": bench.text.name,
            "rows": setting.rows,
            "batch_size": setting.batch_size,
            "repeats": setting.repeats,
        },
        "measured": measured,
    }


def markdown(content: dict[str, Any]) -> str:
    """The table and its conditions as Markdown."""

    def text(values: dict[str, float] | None) -> str:
        return "" if values is None else f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"

    lines = ["|  | samples/s | time over the bare text encoder | speed over its training graph |", "|---|---|---|---|"]
    for name, label in LABELS.items():
        found = content["measured"][name]
        cells = [f"{found['samples_per_second']['median']:.1f}", text(found.get("over_bare"))]
        lines.append("| " + " | ".join([label, *cells, text(found.get("times_training_graph"))]) + " |")
    about, where = content["setting"], content["machine"]
    lines += [
        "",
        f"Text encoder: {about['text_model']}. {about['rows']} generated rows of MOSI's unaligned shapes, batches of "
        f"{about['batch_size']}; medians, lowest and highest of {about['repeats']} turns. {where['device']}, "
        f"{where['architecture']} {where['system']}, {where['cpus']} CPUs, {where['threads']} threads, "
        f"{where['precision']}, torch {where['torch']}.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the benchmark."""
    setting, output = parse("methods", (__doc__ or "").splitlines()[0], arguments)
    content = measure(setting)
    print(markdown(content))
    if output is not None:
        write_both(output, "methods", content, markdown(content))


if __name__ == "__main__":
    main()
