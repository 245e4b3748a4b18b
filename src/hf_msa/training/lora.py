"""LoRA adapters for multimodal language models: attaching, training on answers, saving and merging.

The only file that imports peft. The adapter sits on the attention of the language model alone; the towers that read sound
and pictures stay as they are (U-ACS, "Low-Rank Adaptation"; ranks and rates are ours, as the paper gives none).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_callback import TrainerState

from hf_msa.errors import MsaError, reason, require_package
from hf_msa.files import atomic_directory
from hf_msa.models.msa_mllm import LocalMllm, MllmRequest

from .arguments import check_arguments
from .trainer import CompleteCheckpoints

if TYPE_CHECKING:
    from peft import PeftModel

# By the end of the name: what stands before it differs between model families and versions of transformers.
LANGUAGE_ATTENTION = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
_IGNORED = -100


@dataclass(frozen=True)
class LoraSettings:
    """Shape of an adapter.

    Args:
        rank: Rank of the update.
        alpha: The update is scaled by alpha / rank.
        dropout: On what goes into the update, in training.
        target_modules: Regular expression for the full names of the linear layers that get one.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: str = LANGUAGE_ATTENTION


@dataclass
class LoraTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with defaults for an adapter.

    Defaults that differ from the parent: three epochs at 1e-4, 2 rows x 8 steps of accumulation, bf16 where there is a GPU
    that has it, a checkpoint per epoch of which the last two are kept, no columns removed, no reporting service.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the adapter."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the examples."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Examples per step and device."})
    gradient_accumulation_steps: int = field(default=8, metadata={"help": "Steps per update."})
    bf16: bool | None = field(  # type: ignore[assignment]  # None only until __post_init__ has decided
        default=None, metadata={"help": "Mixed precision; default: where a GPU has it."}
    )
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint to resume from."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs what examples hold."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Reporting services, e.g. tensorboard."}
    )

    def __post_init__(self) -> None:
        """Take bf16 where there is a GPU that has it, and checkpoint activations without re-entering autograd."""
        check_arguments(self)
        if self.bf16 is None:
            is_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = is_gpu and not self.fp16 and torch.cuda.is_bf16_supported()
        if self.activation_checkpointing and self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        super().__post_init__()


@dataclass(frozen=True)
class MllmExample:
    """A request and the answer that the model shall learn to give.

    Args:
        request: What is asked.
        answer: What it shall say, without the end of text.
    """

    request: MllmRequest
    answer: str


@dataclass(frozen=True)
class AnswerCollator:
    """Makes batches whose labels are the tokens of the answers and the end of text after each; all else is ignored.

    Args:
        mllm: The model whose template, tokenizer and towers the batches are for.
    """

    mllm: LocalMllm

    def __call__(self, examples: Sequence[MllmExample]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            examples: Any mixture of modalities.

        Returns:
            The model's inputs, and `labels` `(batch, length)` of int64.
        """
        inputs, lengths = self.mllm.encode_with_answers(
            [example.request for example in examples], [example.answer for example in examples]
        )
        labels = torch.full_like(inputs["input_ids"], _IGNORED)
        begin = labels.shape[1] - max(lengths)
        for row, length in enumerate(lengths):
            labels[row, begin : begin + length] = inputs["input_ids"][row, begin : begin + length]
        return {**inputs, "labels": labels}


def attach_adapter(model: PreTrainedModel, base_model: str, settings: LoraSettings | None = None) -> "PeftModel":
    """Put a fresh adapter into a model, which answers as before until it is trained.

    Args:
        model: Gets the adapter's layers in place; everything else in it is frozen.
        base_model: Folder or Hub name of `model`, written into the adapter: peft cannot know that of a model made by hand.
        settings: Shape of the adapter.

    Returns:
        The model as peft wraps it.

    Raises:
        MsaError: If peft is not installed, or the model has no layer of the given names.
    """
    require_package("peft", "lora")
    from peft import LoraConfig, get_peft_model

    settings = settings or LoraSettings()
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        wrapped: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        raise MsaError(
            f"No layer of {type(model).__name__} can take the adapter ({reason(error)}); give target_modules as a regular "
            "expression for the full names of its language model's attention layers."
        ) from error
    wrapped.peft_config["default"].base_model_name_or_path = base_model
    return wrapped


def save_adapter(model: "PeftModel", folder: str | os.PathLike[str]) -> None:
    """Write the adapter alone, as safetensors with its configuration.

    Args:
        model: What `attach_adapter` gave.
        folder: Replaced as a whole once everything is written.
    """
    with atomic_directory(folder) as temporary:
        _write_adapter(model, temporary)


def _write_adapter(model: "PeftModel", folder: str | os.PathLike[str]) -> None:
    # Left to itself, peft asks the Hub for the base model's vocabulary to decide whether embeddings belong to the adapter.
    model.save_pretrained(os.fspath(folder), save_embedding_layers=False)


class LoraTrainer(CompleteCheckpoints):
    """Trains an adapter on the answers to requests, resumable from its last complete checkpoint.

    Args:
        mllm: The model; its adapter's layers are in place once this is made, so it answers with what was learned.
        args: Training arguments.
        examples: What to learn from.
        base_model: Folder or Hub name of the model, written into the adapter.
        settings: Shape of the adapter.
    """

    def __init__(
        self,
        mllm: LocalMllm,
        args: LoraTrainingArguments,
        examples: Sequence[MllmExample],
        base_model: str,
        settings: LoraSettings | None = None,
    ) -> None:
        if not examples:
            raise MsaError("There are no examples to train an adapter on; give at least one request with its answer.")
        set_seed(args.seed)
        self._adapted = adapted = attach_adapter(mllm.model, base_model, settings)
        if args.activation_checkpointing:
            # The frozen embeddings give nothing that autograd would follow into a checkpointed layer.
            adapted.enable_input_require_grads()
        super().__init__(
            model=adapted, args=args, train_dataset=_Examples(examples), data_collator=AnswerCollator(mllm)
        )

    @property
    def adapted(self) -> "PeftModel":
        """The model with its adapter, for `save_adapter`."""
        return self._adapted

    def fit(self) -> TrainerState:
        """Train to the end, from the last complete checkpoint in the output folder where there is one.

        Returns:
            The trainer's state; its `log_history` holds the losses.
        """
        state = super().fit()
        self.adapted.eval()
        return state

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        _write_adapter(self.adapted, output_dir or str(self.args.output_dir))


class _Examples(Dataset[MllmExample]):
    """A sequence as a data set."""

    def __init__(self, examples: Sequence[MllmExample]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> MllmExample:
        return self._examples[index]
