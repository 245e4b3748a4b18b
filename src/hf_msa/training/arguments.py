"""Training arguments: those of transformers, and the few that multimodal sentiment analysis needs beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from hf_msa.evaluation.metrics import METRICS


@dataclass
class MsaTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with defaults for hf_msa; recipes and flags override them.

    Defaults that differ from the parent: evaluation, saving and logging once per epoch, the best checkpoint loaded at the
    end, at most the best and the last two checkpoints kept, batches grouped by length, no reporting service.
    """

    # Read as JSON where they come as text, from the command line.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "component_learning_rates", "component_weight_decays"]

    # What concerns the final stage alone when it is given on the command line: how the optimiser works, and which
    # checkpoint is best. All else (devices, precision, logging, saving, loading) concerns every stage. This is not in the
    # fields' metadata because `HfArgumentParser` hands that to argparse.
    FINAL_STAGE_ONLY: ClassVar[frozenset[str]] = frozenset(
        {
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "component_learning_rates",
            "component_weight_decays",
            "early_stopping_patience",
            "gradient_accumulation_steps",
            "greater_is_better",
            "label_smoothing_factor",
            "learning_rate",
            "lr_scheduler_kwargs",
            "lr_scheduler_type",
            "max_grad_norm",
            "max_steps",
            "metric_for_best_model",
            "neftune_noise_alpha",
            "num_train_epochs",
            "optim",
            "optim_args",
            "optim_target_modules",
            "per_device_train_batch_size",
            "text_learning_rate",
            "warmup_steps",
            "weight_decay",
        }
    )

    text_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the text encoder; default: that of everything else."},
    )
    component_learning_rates: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Learning rates by component, the first part of a parameter\'s name, e.g. {"audio_encoder": 1e-3}; '
            "default: that of everything else.",
        },
    )
    component_weight_decays: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Weight decays by component, likewise; biases and norms have none."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this many evaluations without a better one; default: never."},
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on the validation split."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint to resume from."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log losses."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the checkpoint that is best on the validation split."}
    )
    metric_for_best_model: str | None = field(
        default="eval_loss", metadata={"help": "What the best checkpoint is chosen by, e.g. eval_mae."}
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether the metric grows as it improves; default: as that metric does."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept beside the best one."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "group_by_length saves padding; random gives plain batches."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs every column."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Reporting services, e.g. tensorboard."}
    )
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Rows per evaluation batch and device."})

    def __post_init__(self) -> None:
        """Know of each metric which way is better, as the library takes all but losses to grow; check the components."""
        if self.greater_is_better is None:
            metric = METRICS.get((self.metric_for_best_model or "").removeprefix("eval_"))
            self.greater_is_better = metric is not None and metric.higher_is_better
        super().__post_init__()
        self.component_learning_rates = _component_numbers("component_learning_rates", self.component_learning_rates)
        self.component_weight_decays = _component_numbers("component_weight_decays", self.component_weight_decays)
        if self.text_learning_rate is not None and "text_encoder" in (self.component_learning_rates or {}):
            raise ValueError(
                "The text encoder's learning rate is given twice, as text_learning_rate and in component_learning_rates; "
                "leave one of them out"
            )

    @property
    def n_gpu(self) -> int:
        """GPUs that this process uses: at most one. Several are for `accelerate launch`, not for `nn.DataParallel`."""
        return min(1, int(super().n_gpu))


def _component_numbers(name: str, given: Any) -> dict[str, Any] | None:
    """Numbers by component, or a ValueError that says what is none; YAML reads ``1e-3`` (no dot) as text."""
    if given is None:
        return None
    try:
        numbers = {str(component): float(value) for component, value in given.items() if type(value) is not bool}
    except (AttributeError, TypeError, ValueError):
        numbers = {}
    if (
        not isinstance(given, Mapping)
        or len(numbers) != len(given)
        or any(not value >= 0 for value in numbers.values())
    ):
        raise ValueError(
            f'{name} is {given!r}; it has to give each component a number of at least 0, e.g. {{"audio_encoder": 1e-3}}'
        )
    return numbers
