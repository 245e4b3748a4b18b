"""Training arguments: those of transformers, and the few that multimodal sentiment analysis needs beside them."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from transformers import TrainingArguments

from hf_msa.evaluation.metrics import METRICS

_SAMPLINGS = ("group_by_length", "random")
_BATCHES = (
    "batches are cut by the run itself, so that they are the same after an interruption and in several processes"
)
_VALIDATION = "validation keeps one score per row, and every metric is measured on all of them"
_SHARDS = "a run is not split over devices but repeated on each; start several processes instead, see docs/training.md"
_PUSH = "`hf-msa push` uploads the run when it is finished, and checks what arrived"
_CONTINUES = "a run that was interrupted has to go on as if it had not been"
_FULL_PRECISION = "training validates in the precision it trains in; use bf16 or fp16"
_LANGUAGE_MODELS = "it is for models that generate text"

REFUSED: Mapping[str, str] = {
    "accelerator_config": _BATCHES,
    "auto_find_batch_size": "the batch is part of a run's settings; choose a smaller per_device_train_batch_size",
    "average_tokens_across_devices": "losses are means over samples, not over tokens",
    "batch_eval_metrics": _VALIDATION,
    "bf16_full_eval": _FULL_PRECISION,
    "dataloader_drop_last": _BATCHES,
    "dataloader_in_order": _BATCHES,
    "debug": "the library's check stops at boolean masks; training stops at the first loss that is no finite number anyway",
    "deepspeed": _SHARDS,
    "do_predict": "the trainer never sees the test split; use `hf-msa evaluate` when the run is finished",
    "enable_jit_checkpoint": "it would end an interrupted run as if it were finished; a run that is killed resumes anyway",
    "eval_accumulation_steps": _VALIDATION,
    "eval_do_concat_batches": _VALIDATION,
    "eval_on_start": "an untrained model is no candidate for the best checkpoint",
    "eval_use_gather_object": _VALIDATION,
    "fp16_full_eval": _FULL_PRECISION,
    "fsdp": _SHARDS,
    "fsdp_config": _SHARDS,
    "hub_always_push": _PUSH,
    "hub_model_id": _PUSH,
    "hub_private_repo": _PUSH,
    "hub_revision": _PUSH,
    "hub_strategy": _PUSH,
    "hub_token": _PUSH,
    "ignore_data_skip": _CONTINUES,
    "include_for_metrics": _VALIDATION,
    "label_names": "the labels are those of the data set",
    "label_smoothing_factor": "labels are scores, not classes",
    "length_column_name": "the lengths of rows are known",
    "liger_kernel_config": _LANGUAGE_MODELS,
    "logging_nan_inf_filter": "training stops at the first loss that is not a finite number",
    "optim_target_modules": "rates by part of the model are given by component_learning_rates",
    "parallelism_config": _SHARDS,
    "prediction_loss_only": _VALIDATION,
    "push_to_hub": _PUSH,
    "remove_unused_columns": "the collator needs every column",
    "restore_callback_states_from_checkpoint": _CONTINUES,
    "resume_from_checkpoint": "a run resumes by itself, from its own newest whole checkpoint",
    "save_only_model": "without the optimizer's state a run cannot be resumed to the same end",
    "use_cache": _LANGUAGE_MODELS,
    "use_liger_kernel": _LANGUAGE_MODELS,
}
"""Training arguments of transformers that only have their default -> why."""


def check_arguments(arguments: TrainingArguments) -> None:
    """Refuse arguments that would be without effect, or with a wrong one; called before the library completes them.

    Raises:
        ValueError: Naming the first of them, and why.
    """
    for known in fields(arguments):
        default = known.default_factory() if known.default_factory is not MISSING else known.default
        given = getattr(arguments, known.name)
        if isinstance(given, float) and not math.isfinite(given):
            raise ValueError(f"{known.name} is {given}; give a finite number")
        if known.name in REFUSED and (given or None) != (default or None):
            raise ValueError(f"{known.name} is not supported: {REFUSED[known.name]}; leave it out")
    epochs, steps = arguments.num_train_epochs, arguments.max_steps
    if not epochs > 0 and not steps > 0:
        raise ValueError(f"num_train_epochs is {epochs}, with which nothing is trained; give a number above 0")


@dataclass
class MsaTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with defaults for hf_msa; recipes and flags override them.

    Defaults that differ from the parent: evaluation, saving and logging once per epoch, the best checkpoint loaded at the
    end, at most the best and the last two checkpoints kept, batches grouped by length, the states of callbacks restored, no
    reporting service. Arguments that would not do what they say are refused, see `REFUSED`.

    Example:
        ```python
        from hf_msa import MsaTrainingArguments

        MsaTrainingArguments("output", num_train_epochs=1, learning_rate=1e-3, use_cpu=True)
        ```
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
            "help": "Learning rates by component, the first part of a parameter's name or one that the method names, e.g. "
            '{"audio_encoder": 1e-3}; '
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
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "An interrupted run stops early when an undisturbed one does."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs every column."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Reporting services, e.g. tensorboard."}
    )
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Rows per evaluation batch and device."})

    def __post_init__(self) -> None:
        """Know of each metric which way is better, as the library takes all but losses to grow; check the components."""
        check_arguments(self)
        name = (self.metric_for_best_model or "loss").removeprefix("eval_")
        metric = METRICS.get(name)
        grows = metric is not None and metric.higher_is_better
        if self.greater_is_better not in (None, grows) and (metric is not None or name == "loss"):
            raise ValueError(
                f"greater_is_better is {self.greater_is_better}, by which the worst checkpoint would be chosen: {name!r} "
                f"{'grows' if grows else 'falls'} as a model improves; leave it out"
            )
        self.greater_is_better = grows
        if self.train_sampling_strategy not in _SAMPLINGS:
            raise ValueError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}; give {' or '.join(map(repr, _SAMPLINGS))}"
            )
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


FLAGS = frozenset(known.name for known in fields(MsaTrainingArguments)) - {"output_dir", "seed"}
"""Training arguments that can be given for a whole run; folder and seed are those of the run itself."""
