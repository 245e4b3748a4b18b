"""LoRA adapters for language models: attaching, training on answers, saving.

The only file that imports peft. The adapter sits on the attention of the language model alone; the towers that read sound
and pictures stay as they are, and so do the experts of a mixture (U-ACS, "Low-Rank Adaptation"; ranks and rates are ours, as
the paper gives none).
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_msa.errors import MsaError, reason, require_package
from hf_msa.files import atomic_directory
from hf_msa.models.msa_mllm import LocalMllm, MllmRequest

from .arguments import check_arguments
from .sampler import MsaBatchSampler
from .trainer import CompleteCheckpoints

if TYPE_CHECKING:
    from peft import PeftModel

_IGNORED = -100


@dataclass(frozen=True)
class LoraSettings:
    """Shape of an adapter.

    Args:
        rank: Rank of the update.
        alpha: The update is scaled by alpha / rank.
        dropout: On what goes into the update, in training.
        target_modules: Which linear layers of the language model get one: a regular expression for their full names, or the
            last parts of their names with commas between ("q_proj,v_proj"). None: all those of its attention.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: str | None = None


@dataclass
class LoraTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with defaults for an adapter.

    Defaults that differ from the parent: three epochs at 1e-4, 2 rows x 8 steps of accumulation in batches of like length,
    bf16 where there is a GPU that has it, a checkpoint per epoch of which the last two and the best are kept, no columns
    removed, no reporting service. The fields of `LoraSettings` are `lora_rank` and so on.
    """

    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapter is scaled by alpha / rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on what goes into the adapter."})
    lora_target_modules: str | None = field(
        default=None, metadata={"help": "Layers that get one; default: the language model's attention."}
    )

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
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Batches of examples of like length, or at random."}
    )
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
        if self.lora_rank < 1 or self.lora_alpha < 1 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_rank is {self.lora_rank}, lora_alpha {self.lora_alpha} and lora_dropout {self.lora_dropout}; give "
                "whole numbers from 1, and a probability below 1"
            )
        super().__post_init__()

    @property
    def lora(self) -> LoraSettings:
        """The shape of the adapter."""
        return LoraSettings(self.lora_rank, self.lora_alpha, self.lora_dropout, self.lora_target_modules)


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


def target_layers(model: PreTrainedModel, target_modules: str | None = None) -> list[str]:
    """Full names of those linear layers of a model's language model that get an adapter.

    Args:
        model: Of any family.
        target_modules: See `LoraSettings`.

    Raises:
        MsaError: If there is none of that name.
    """
    decoder = model.get_decoder()
    prefix = next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")
    linear = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and isinstance(module, nn.Linear | Conv1D)
        and module is not model.get_output_embeddings()
    }
    if target_modules is None:
        # By the class of what they are part of: names of layers differ between families more than those of classes.
        attention = tuple(
            f"{name}." for name, module in model.named_modules() if type(module).__name__.endswith("Attention")
        )
        found = [name for name in linear if name.startswith(attention)]
    else:
        ends = tuple(f".{end.strip()}" for end in target_modules.split(","))
        pattern = _compiled(target_modules)
        found = [name for name in linear if f".{name}".endswith(ends) or (pattern and pattern.fullmatch(name))]
    if not found:
        raise MsaError(
            f"No layer of the language model in {type(model).__name__} can take the adapter"
            f"{'' if target_modules is None else f' ({target_modules!r})'}; give target_modules as last parts of names or a "
            f"regular expression for full names, of which there are e.g. {', '.join(list(linear)[:3]) or 'none'}."
        )
    return found


def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _as_pattern(names: Iterable[str]) -> str:
    """A regular expression for names, layers' numbers left open, as an adapter's configuration is to be readable."""
    parts = ([r"\d+" if part.isdigit() else re.escape(part) for part in name.split(".")] for name in names)
    return "|".join(dict.fromkeys(r"\.".join(one) for one in parts))


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
    layers = target_layers(model, settings.target_modules)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_as_pattern(layers),
        fan_in_fan_out=isinstance(model.get_submodule(layers[0]), Conv1D),
        task_type="CAUSAL_LM",
    )
    try:
        wrapped: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        raise MsaError(f"{type(model).__name__} cannot take the adapter: {reason(error)}.") from error
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


def training_facts(state: TrainerState) -> dict[str, Any]:
    """Facts about an adapter's training for the log: `epochs`, `best_step` and `history`, the losses as they were measured.

    Args:
        state: What `LoraTrainer.fit` gave.
    """
    history = [entry for entry in state.log_history if {"loss", "eval_loss"} & entry.keys()]
    return {"epochs": state.epoch, "best_step": state.best_global_step, "history": history}


class LoraTrainer(CompleteCheckpoints):
    """Trains an adapter on the answers to requests, resumable from its last complete checkpoint.

    Args:
        mllm: The model; its adapter's layers are in place once this is made, so it answers with what was learned.
        args: Training arguments, the shape of the adapter among them.
        examples: What to learn from.
        base_model: Folder or Hub name of the model, written into the adapter.
        validation: What chooses the adapter: whenever a checkpoint is saved, the loss of these answers is measured, and the
            best one is what remains. None: the last one remains.
        lengths: Of each example, in any unit, so that batches can be of like length; None: at random.
    """

    args: LoraTrainingArguments

    def __init__(
        self,
        mllm: LocalMllm,
        args: LoraTrainingArguments,
        examples: Sequence[MllmExample],
        base_model: str,
        validation: Sequence[MllmExample] | None = None,
        lengths: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        if not examples:
            raise MsaError("There are no examples to train an adapter on; give at least one request with its answer.")
        set_seed(args.seed)
        self._mllm, self._lengths = mllm, lengths
        self._adapted = adapted = attach_adapter(mllm.model, base_model, args.lora)
        if args.activation_checkpointing:
            # The frozen embeddings give nothing that autograd would follow into a checkpointed layer.
            adapted.enable_input_require_grads()
        args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
        if validation and args.save_strategy != SaveStrategy.NO:
            args.eval_strategy, args.eval_steps = (
                IntervalStrategy(SaveStrategy(args.save_strategy).value),
                args.save_steps,
            )
            args.load_best_model_at_end = args.prediction_loss_only = True
            args.metric_for_best_model, args.greater_is_better = "loss", False
        super().__init__(
            model=adapted,
            args=args,
            train_dataset=_Examples(examples),
            eval_dataset=_Examples(validation or ()),
            data_collator=AnswerCollator(mllm),
        )

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of this process; see `MsaBatchSampler`."""
        grouped = self.args.train_sampling_strategy == "group_by_length"
        sampler = MsaBatchSampler(
            lengths=np.asarray(self._lengths) if grouped and self._lengths is not None else None,
            rows=len(cast(_Examples, self.train_dataset)),
            batch_size=self._train_batch_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            passes=1,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=self.args.gradient_accumulation_steps,
        )
        return self.sampled_loader(sampler, self.data_collator)

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> SequentialSampler:
        return SequentialSampler(cast(_Examples, eval_dataset))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of the answers; logits are computed for their positions only, what all rows begin with once."""
        if self.accelerator.num_processes == 1 and not self.args.activation_checkpointing:
            inputs, shared = self._mllm.share_beginning(inputs, model)
            for name, cache in shared.items():
                behind = cache.get_seq_length()
                inputs = {k: v if k == "attention_mask" else v[:, behind:] for k, v in inputs.items()}
                inputs |= {name: cache, "use_cache": True}
        labels = inputs["labels"]
        # The logits before the first answer's first token are the first that count.
        count = labels.shape[1] - int((labels != _IGNORED).any(0).nonzero()[0, 0]) + 1
        kept = self._mllm.last_logits(count)
        if kept:
            inputs = {**inputs, **kept, "labels": labels[:, -count:]}
        return super().compute_loss(model, inputs, *args, **kwargs)

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
        # The sampler numbers rows through all epochs.
        return self._examples[index % len(self)]
