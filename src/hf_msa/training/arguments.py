"""Training arguments: those of transformers, and the few that multimodal sentiment analysis needs beside them."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_msa.evaluation.metrics import METRICS


@dataclass
class MsaTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with defaults for hf_msa; recipes and flags override them.

    Defaults that differ from the parent: evaluation, saving and logging once per epoch, the best checkpoint loaded at the
    end, at most the best and the last two checkpoints kept, batches grouped by length, no reporting service.
    """

    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the text encoder; default: that of everything else."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better one; default: never."}
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
        """Know of each metric which way is better: the library takes all but losses to grow."""
        if self.greater_is_better is None:
            metric = METRICS.get((self.metric_for_best_model or "").removeprefix("eval_"))
            self.greater_is_better = metric is not None and metric.higher_is_better
        super().__post_init__()
