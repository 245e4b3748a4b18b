"""Training of CMC: unimodal models on pseudo labels (PLGM), then the whole model on what they learned.

Stages (public code):
    unimodal: one model per modality behind a frozen text encoder; labels and averaged teachers move along.
    main: everything, from the best teachers, with the pseudo labels fixed.
"""

import copy
import math
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput

from hf_msa.data.missing import CompleteProtocol
from hf_msa.errors import MsaError
from hf_msa.files import atomic_write
from hf_msa.models.configuration_cmc import CmcConfig
from hf_msa.models.modeling_cmc import CmcForSentimentAnalysis, CmcUnimodalModels
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_schema import UNIMODAL_LABEL_KEYS
from hf_msa.training.arguments import MsaTrainingArguments
from hf_msa.training.stages import RunContext
from hf_msa.training.text_states import TextStates, compute_text_states
from hf_msa.training.trainer import AdamTrainer

from .pseudo_labels import PseudoLabels, momentum_at

STAGES = ("unimodal", "main")
FINAL_STAGE = "main"
SHARED_STAGES = ("unimodal",)
# Of the configuration, what the unimodal models do not depend on.
LATER_FIELDS = ("fusion_temperature", "top_k", "pfm", "mcr", "router_input", "pretrain")
# What the first stage gives beside its models.
PSEUDO_LABELS_FILE = "pseudo_labels.safetensors"
KEPT = (f"unimodal/{PSEUDO_LABELS_FILE}",)
_STATE_FILE = "cmc_state.safetensors"
_SPLITS = ("train", "validation")


def stages_of(config: CmcConfig) -> tuple[str, ...]:
    """The stages of a run: without `pretrain` only the second."""
    return STAGES if config.pretrain else ("main",)


class _TextDecayTrainer(AdamTrainer):
    """Adam, with weight decay for the text encoder alone (public code)."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights of the text encoder without its biases and norms."""
        return [name for name in super().get_decay_parameter_names(model) if name.startswith("text_encoder.")]


class _AfterSteps(TrainerCallback):
    """Tells the trainer of the first stage when the optimizer has stepped and when an epoch is over."""

    def __init__(self, trainer: "CmcUnimodalTrainer") -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the teachers follow."""
        self.trainer.move_teachers()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the labels of an epoch with its last step, before a checkpoint of that step is written."""
        if state.epoch is not None and state.epoch.is_integer():
            self.trainer.note_labels()


class CmcUnimodalTrainer(_TextDecayTrainer):
    """Trains the unimodal models on pseudo labels that move along, and keeps the best teacher of each modality.

    Teachers are exponential averages of the branches. Per modality the weights are kept at the lowest cross entropy of
    the teacher against the labels that the validation rows began with. (The public code takes their pseudo labels as they
    stand, which follow the models, so that these are measured by their own opinion: `reference_quirks`.) `eval_loss`, the
    sum of these lowest values, improves exactly when a modality does. Where the text encoder learns too
    (`labels_source="gt"`) there are no teachers, and what is kept are the models themselves, that of the text with its
    encoder.

    Args:
        train_labels: Pseudo labels of the training rows.
        validation_labels: Pseudo labels of the validation rows; they move once per epoch, after they were used.
    """

    model: CmcUnimodalModels

    def __init__(self, *args: Any, train_labels: PseudoLabels, validation_labels: PseudoLabels, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (self.args.metric_for_best_model or "loss").removeprefix("eval_") != "loss":
            raise MsaError(
                f"Unimodal models are chosen by eval_loss, but metric_for_best_model is "
                f"{self.args.metric_for_best_model!r}; leave it out for the stage 'unimodal'."
            )
        config = self.model.config
        self._modalities = config.modalities
        self._labels = {"train": train_labels, "validation": validation_labels}
        for table in self._labels.values():
            table.to(self.args.device)
        self._labels_move = config.plgm and config.labels_source == "pseudo"
        self._text_is_fixed = not any(parameter.requires_grad for parameter in self.model.text_encoder.parameters())
        # The copy shares the text encoder.
        encoder = self.model.text_encoder
        self._teachers = copy.deepcopy(self.model, {id(encoder): encoder}).eval() if self._text_is_fixed else None
        self._text_states: dict[str, TextStates] = {}
        self._epoch = 0
        self._history: list[Tensor] = []
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []
        self._best_losses = dict.fromkeys(self._modalities, math.inf)
        self._best_weights: dict[str, Tensor] = {}
        self._best_labels: dict[str, Tensor] = {}
        self.add_callback(_AfterSteps(self))

    @property
    def teachers(self) -> CmcUnimodalModels:
        """The models that are validated and kept: averaged ones, or those that are trained where there are no others."""
        return self.model if self._teachers is None else self._teachers

    def move_teachers(self) -> None:
        """Move the averaged weights towards the trained ones by the momentum of the epoch."""
        if self._teachers is None:
            return
        config = self.model.config
        for name in self._modalities:
            momentum = momentum_at(config.ema_momentum[name], config.ema_gamma[name], self._epoch)
            averaged, trained = (list(m.branches[name].parameters()) for m in (self._teachers, self.model))
            get_ema_multi_avg_fn(momentum)(averaged, trained, None)

    def note_labels(self) -> None:
        """Add the hard labels of the training rows to the history."""
        self._history.append(self._labels["train"].hard().to(torch.uint8).cpu())

    def _states_of(self, split: str) -> TextStates | None:
        """The cached text states of a split, None where they change from epoch to epoch; for all processes at once."""
        collator = self.train_collator if split == "train" else self.eval_collator
        quirks = self.model.config.reference_quirks  # dropout is active in the encoder
        if not self._text_is_fixed or quirks or not isinstance(collator.protocol, CompleteProtocol):
            return None
        if split not in self._text_states:
            path = self._text_file(split)
            if self.is_world_process_zero() and not path.is_file():
                self.model.text_encoder.eval()
                rows = self.train_rows if split == "train" else self.eval_rows
                with self.accelerator.autocast():
                    compute_text_states(self.model, rows, collator, path)
            self.accelerator.wait_for_everyone()
            self._text_states[split] = TextStates(path)
        return self._text_states[split]

    def _text_file(self, split: str) -> Path:
        return Path(str(self.args.output_dir)) / f"text_states_{split}.safetensors"

    def model_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """Text states where they are cached, and in training the hard labels as they stand."""
        split = "train" if training else "validation"
        states = self._states_of(split)
        given: dict[str, Any] = {}
        if states is not None:
            given["text_hidden"] = states(inputs["sample_index"], inputs["input_ids"].shape[1])
        if training:
            given["pseudo_labels"] = self._labels["train"].hard(inputs["sample_index"])
        return given

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss on the labels as they stand; after it they move, with what all processes predicted."""
        self._epoch = int(inputs["draw"][0]) + 1
        if self._text_is_fixed and not self.model.config.reference_quirks:
            self.model.text_encoder.eval()
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self._labels_move:
            indices, probabilities = inputs["sample_index"], outputs.unimodal_logits.detach().float().softmax(-1)
            if self.accelerator.num_processes > 1:
                indices = self.accelerator.pad_across_processes(indices, pad_index=-1)
                probabilities = self.accelerator.pad_across_processes(probabilities)
                indices, probabilities = self.accelerator.gather((indices, probabilities))
                indices, probabilities = indices[indices >= 0], probabilities[indices >= 0]
            self._labels["train"].update(indices, probabilities, self._epoch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Keep the teachers' losses and the trained models' predictions of one validation batch."""
        inputs = self._prepare_inputs(inputs)
        given = self.forward_inputs(inputs, training=False)
        with torch.no_grad(), self.accelerator.autocast():
            if "text_hidden" not in given:
                given["text_hidden"] = self.model.encode_text(inputs["input_ids"], inputs["attention_mask"])
            logits = model(**given).unimodal_logits.float()
            judged = logits if self._teachers is None else self._teachers(**given).unimodal_logits.float()
        table, rows = self._labels["validation"], inputs["sample_index"]
        targets = table.hard(rows) if self.model.config.reference_quirks else table.classes[rows]
        losses = F.cross_entropy(judged.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        self._validated.append((inputs["sample_index"].cpu(), losses.cpu(), logits.softmax(dim=-1).cpu()))
        return losses.sum(dim=1).mean(), None, inputs["labels"]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Validate the teachers, keep those that are better than before, then move the validation labels."""
        if self._teachers is not None and not self.model.config.reference_quirks:
            trained = dict(self.model.branches.named_buffers())
            for name, buffer in self._teachers.branches.named_buffers():
                buffer.copy_(trained[name])
        self._validated.clear()
        # Before the processes take batches, of which one may have none.
        self._states_of("validation")
        output = super().evaluation_loop(*args, **kwargs)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        # In the order of the batches, which the processes took in turn.
        numbered = [(number * processes + rank, part) for number, part in enumerate(self._validated)]
        batches = [part for _, part in sorted(gather_object(numbered), key=lambda numbered: numbered[0])]
        indices, losses, probabilities = (torch.cat(parts) for parts in zip(*batches, strict=True))
        self._validated.clear()
        # An epoch that is validated more than once moves the labels the first time.
        epoch = math.ceil(self.state.epoch or 0)
        table = self._labels["validation"]
        means = {
            name: round(value, 4)
            for name, value in zip(self._modalities, losses.double().mean(dim=0).tolist(), strict=True)
        }
        if self._labels_move and epoch > table.epoch:
            # The mean over the draws of the validation masks.
            sums = torch.zeros(len(self.eval_rows), *probabilities.shape[1:], dtype=torch.float64)
            sums.index_add_(0, indices, probabilities.double())
            draws = indices.bincount(minlength=len(sums)).view(-1, 1, 1)
            table.update(torch.arange(len(sums)), sums / draws, epoch)
        better = [name for name, value in means.items() if value < self._best_losses[name]]
        for name in better:
            self._best_losses[name] = means[name]
            self._best_weights |= self._weights(name)
        if better:
            self._best_labels = {split: self._labels[split].state()["soft"] for split in _SPLITS}
        measured = {f"eval_loss_{name}": value for name, value in means.items()}
        total = round(sum(self._best_losses.values()), 4)
        return output._replace(metrics={**(output.metrics or {}), "eval_loss": total, **measured})

    def _weights(self, modality: str) -> dict[str, Tensor]:
        """A copy of the weights that a modality is kept with, by their names in the model."""
        prefixes = [f"branches.{modality}."]
        if modality == "text" and not self._text_is_fixed:
            prefixes.append("text_encoder.")
        return {
            name: value.detach().cpu().clone()
            for name, value in self.teachers.state_dict().items()
            if name.startswith(tuple(prefixes))
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the losses how many labels have flipped and how far labels moved in this epoch."""
        if "loss" in logs and self._labels_move:
            table = self._labels["train"]
            for what, values in (("flip_rate", table.flip_rates()), ("label_change", table.changes())):
                logs |= {f"{what}_{name}": value for name, value in zip(self._modalities, values, strict=True)}
        super().log(logs, start_time)

    def _label_history(self) -> Tensor:
        """Hard labels of the training rows after every epoch `(epochs, rows, modalities)`, uint8."""
        rows = self._labels["train"].classes.shape
        return torch.stack(self._history) if self._history else torch.zeros(0, *rows, dtype=torch.uint8)

    def save_state(self, folder: Path) -> None:
        """Write labels, teachers, and the best of both."""
        groups: dict[str, dict[str, Tensor]] = {
            **{split: self._labels[split].state() for split in _SPLITS},
            "teacher": {} if self._teachers is None else dict(self._teachers.branches.state_dict()),
            "best": self._best_weights,
            "best_labels": self._best_labels,
            "": {
                "history": self._label_history(),
                "best_losses": torch.tensor(list(self._best_losses.values()), dtype=torch.float64),
            },
        }
        tensors = {
            f"{group}/{name}": value.detach().cpu().contiguous()
            for group, part in groups.items()
            for name, value in part.items()
        }
        with atomic_write(folder / _STATE_FILE) as temporary:
            save_file(tensors, temporary)

    def load_state(self, folder: Path) -> None:
        """Restore labels, teachers, and the best of both."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(folder / _STATE_FILE).items():
            group, _, name = key.partition("/")
            # Out of the mapped file, which may be deleted while training goes on.
            groups.setdefault(group, {})[name] = value.clone()
        for split in _SPLITS:
            self._labels[split].load_state(groups[split])
        if self._teachers is not None:
            self._teachers.branches.load_state_dict(groups["teacher"])
        self._best_weights = groups.get("best", {})
        self._best_labels = groups.get("best_labels", {})
        self._history = list(groups[""]["history"])
        self._best_losses = dict(zip(self._modalities, groups[""]["best_losses"].tolist(), strict=True))

    def fit(self) -> TrainerState:
        """Train to the end; the model then holds what is kept of each modality, see `MsaTrainer.fit`."""
        if self._text_is_fixed:
            # A checkpoint to resume from need not repeat, at every epoch, an encoder that never changes.
            self.model._keys_to_ignore_on_save = {
                f"text_encoder.{key}" for key in self.model.text_encoder.state_dict()
            }
        state = super().fit()
        self.model._keys_to_ignore_on_save = set()
        if self.args.load_best_model_at_end:
            self.model.load_state_dict(self._best_weights, strict=False)
        else:
            for name in self._modalities:
                self.model.load_state_dict(self._weights(name), strict=False)
            self._best_labels = {split: self._labels[split].state()["soft"] for split in _SPLITS}
        return state

    def save_products(self, folder: Path) -> None:
        """Write the labels as they were when a modality last improved, and the hard ones of every epoch."""
        with atomic_write(folder / PSEUDO_LABELS_FILE) as temporary:
            save_file({**self._best_labels, "train_history": self._label_history()}, temporary)
        for split in _SPLITS:
            self._text_file(split).unlink(missing_ok=True)


class CmcTrainer(_TextDecayTrainer):
    """Trains the whole model; the labels of the modalities stay as they are given.

    With `reference_quirks` the last epoch is kept and training never stops early.

    Args:
        targets: Hard labels of the training rows `(rows, modalities)`.
    """

    model: CmcForSentimentAnalysis

    def __init__(
        self,
        model: CmcForSentimentAnalysis,
        args: MsaTrainingArguments,
        *arguments: Any,
        targets: Tensor,
        **kwargs: Any,
    ) -> None:
        if model.config.reference_quirks:
            args.load_best_model_at_end = False
            args.early_stopping_patience = None
        super().__init__(model, args, *arguments, **kwargs)
        self._targets = targets.to(self.args.device)

    def model_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """The labels of the modalities in training; without them validation measures the class logits alone."""
        return {"pseudo_labels": self._targets[inputs["sample_index"]]} if training else {}


def first_labels(context: RunContext, split: str) -> PseudoLabels:
    """Labels of every modality to begin with: the multimodal class, or that of the modality's own true label (CMC-GT).

    Raises:
        MsaError: If the data lacks the labels that ``labels_source="gt"`` asks for.
    """
    config = cast(CmcConfig, context.config)
    rows = context.rows[split]
    labels = torch.from_numpy(rows.labels).unsqueeze(1).repeat(1, len(config.modalities))
    if config.labels_source == "gt":
        keys = [UNIMODAL_LABEL_KEYS[name] for name in config.modalities]
        absent = [key for key in keys if key not in rows[0]]
        if absent:
            raise MsaError(
                f"labels_source='gt' trains on true labels of every modality, but {context.facts.name!r} has no "
                f"{absent[0]!r}; take data with unimodal labels, or leave it at 'pseudo'."
            )
        labels = torch.tensor([[float(row[key]) for key in keys] for row in (rows[i] for i in range(len(rows)))])
    momenta = [config.label_momentum[name] for name in config.modalities]
    return PseudoLabels(config.family.polarity(labels), momenta, [config.label_gamma] * len(momenta))


def run(context: RunContext) -> MsaPreTrainedModel:
    """Run both stages; without `pretrain` only the second, on the labels that the first would have begun with."""
    config = cast(CmcConfig, context.config)
    labels = {split: first_labels(context, split) for split in _SPLITS}
    if not config.pretrain:
        return context.train_stage(
            "main", CmcForSentimentAnalysis, final=True, trainer_class=CmcTrainer, targets=labels["train"].hard()
        )

    def unimodal_models() -> CmcUnimodalModels:
        model = context.new_model(CmcUnimodalModels)
        model.text_encoder.requires_grad_(config.labels_source == "gt")
        return model

    unimodal = context.train_stage(
        "unimodal",
        CmcUnimodalModels,
        unimodal_models,
        trainer_class=CmcUnimodalTrainer,
        later_fields=LATER_FIELDS,
        train_labels=labels["train"],
        validation_labels=labels["validation"],
    )
    learned = load_file(context.stage_folder("unimodal") / PSEUDO_LABELS_FILE)["train"]

    def whole_model() -> CmcForSentimentAnalysis:
        set_seed(context.seed)
        return CmcForSentimentAnalysis.from_unimodal(unimodal)

    return context.train_stage(
        "main",
        CmcForSentimentAnalysis,
        whole_model,
        final=True,
        trainer_class=CmcTrainer,
        targets=learned.argmax(dim=-1),
    )
