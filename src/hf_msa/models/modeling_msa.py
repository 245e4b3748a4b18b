"""The base class of all hf_msa models: initialisation, input checks, text backbone, what goes to the Hub."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from .configuration_msa import MsaConfig
from .msa_encoders import encode_by_length
from .msa_outputs import MsaOutput
from .msa_schema import FEATURE_MODALITIES, VALUE_KEYS

# Of `from_pretrained`, what is needed again to fetch other files from the same place.
_HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")


def build_text_encoder(text_config: PreTrainedConfig) -> PreTrainedModel:
    """Build a BERT-family encoder (architecture only, no weights are read), without a pooler where that is possible."""
    model_class: Any = AutoModel._model_mapping[type(text_config)]
    takes_pooling = "add_pooling_layer" in inspect.signature(model_class).parameters
    encoder: PreTrainedModel = AutoModel.from_config(
        text_config, **({"add_pooling_layer": False} if takes_pooling else {})
    )
    return encoder


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average over the positions where `mask` is 1.

    Args:
        hidden (`torch.FloatTensor` of shape `(batch, length, width)`): What to average.
        mask (`torch.Tensor` of shape `(batch, length)`): 1 = counts, 0 = does not.

    Returns:
        `torch.FloatTensor` of shape `(batch, width)`; zeros for a row without any position.
    """
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def sentiment_classes(labels: Tensor) -> Tensor:
    """The class of each sentiment score by its sign, as an index into `SENTIMENT_CLASSES`.

    Args:
        labels (`torch.FloatTensor` of any shape): Scores in label units.

    Returns:
        `torch.LongTensor` of the same shape: 0 below zero, 1 at exactly zero, 2 above.
    """
    return labels.sign().long() + 1


class MsaPreTrainedModel(PreTrainedModel):
    """Base class of all models. A subclass builds its text backbone as `self.text_encoder` and ends with `post_init()`.

    Every forward takes the model inputs of the schema by name and may take training-only tensors beside them.

    Attributes:
        media: Gives the sound and pictures of a row: `waveform`, `frames` and `frames_per_second`, as far as there are any.
            Of use to a model that asks an expert (`MsaConfig.asks_expert`), which calls it for those samples only that the
            expert is asked about. None: rows bring their own, if any.
        open_store: Opens what a model that asks another one may keep the answers in, e.g. a
            `hf_msa.data.plan_cache.PlanCache`. None: they are kept in memory, if at all.
    """

    config: MsaConfig
    text_encoder: PreTrainedModel
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _auto_class = "AutoModel"
    # All Auto classes under which the saved checkpoint answers; they all give the model that predicts.
    _auto_classes: ClassVar[tuple[str, ...]] = ("AutoModel", "AutoModelForSequenceClassification")
    _supports_sdpa = True
    media: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    open_store: Callable[[], Any] | None = None
    _origin: tuple[str, dict[str, Any]] | None = None
    # Without this the Trainer believes that forward divides the loss by the number of items, and multiplies it.
    accepts_loss_kwargs = False

    def __init__(self, config: MsaConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        module = type(self).__module__.rpartition(".")[2]
        config_module = type(config).__module__.rpartition(".")[2]
        config.auto_map = {
            "AutoConfig": f"{config_module}.{type(config).__name__}",
            **{name: f"{module}.{type(self).__name__}" for name in self._auto_classes},
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Use torch's own initialisation: the papers' fusion layers rely on it, not on N(0, 0.02)."""
        # torch's attention hides its own, which also sets what its linear layers have set before.
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint; see `transformers.PreTrainedModel.from_pretrained`.

        Weights come as views of a memory-mapped file, at addresses on which CPU kernels round differently. Copying them
        into memory of their own gives a reloaded model bit for bit the outputs of the model that was saved.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if name is not None:
            model._origin = (str(name), {key: kwargs[key] for key in _HUB_OPTIONS if kwargs.get(key) is not None})
        return loaded

    def stored_file(self, name: str, folder: str = "") -> Path | None:
        """A file beside the weights of the checkpoint that this model was loaded from, fetched where it is on the Hub.

        Args:
            name: The file's name.
            folder: Folder within the checkpoint.

        Returns:
            Where it lies on this machine; None where the checkpoint has no such file, or there is no checkpoint.
        """
        if self._origin is None:
            return None
        checkpoint, options = self._origin
        place = "/".join(part for part in (options.get("subfolder", ""), folder) if part)
        found = cached_file(
            checkpoint,
            name,
            **{**options, "subfolder": place},
            _raise_exceptions_for_missing_entries=False,
            # Without the network, what is not in the cache counts as absent.
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    @classmethod
    def from_text_pretrained(cls, text_model: str, config: MsaConfig) -> Self:
        """Build a model around a pretrained text encoder; everything else is initialised anew.

        Args:
            text_model: Folder or Hub name of a BERT-family checkpoint.
            config: The method's configuration; its `text_config` is replaced by that of `text_model`.
        """
        text_encoder = AutoModel.from_pretrained(text_model, dtype=torch.float32)
        fields = config.to_dict() | {"text_config": text_encoder.config.to_dict()}
        model = cls(type(config).from_dict(fields))
        wanted = model.text_encoder.state_dict()
        model.text_encoder.load_state_dict({k: v for k, v in text_encoder.state_dict().items() if k in wanted})
        return model

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Run the text encoder.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch, tokens)`): 1 = real token.

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, text width)`; what stands at padding is of no meaning.
        """

        def encode(ids: Tensor, mask: Tensor) -> Tensor:
            hidden: Tensor = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            return F.pad(hidden, (0, 0, 0, attention_mask.shape[1] - ids.shape[1]))

        # Without masks behind the encoder, its outputs at padding are part of the result.
        return (
            encode_by_length(encode, input_ids, attention_mask)
            if self.config.mask_padding
            else encode(input_ids, attention_mask)
        )

    def predict_rows(
        self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]], processor: Any
    ) -> MsaOutput:
        """Predict samples of which the raw rows are at hand; what everything that serves a model calls.

        Here the same as forward. A method that reads more of a sample than its features, e.g. the words of the transcript,
        overrides it.

        Args:
            inputs: The forward's own arguments.
            rows: Per sample of the batch `text`, the feature columns without padding, false `<modality>_present` (or None
                for the features) where it lacks a modality, and `id` where there is one; complete, whatever `inputs` lack.
            processor: The model's `MsaProcessor`.
        """
        outputs: MsaOutput = self(**inputs)
        return outputs

    def predict_batches(
        self, batches: Iterable[tuple[Mapping[str, Tensor], Sequence[Mapping[str, Any]]]], processor: Any
    ) -> Iterator[MsaOutput]:
        """Predict many batches; what an evaluation calls.

        Here `predict_rows` of one after the other. A method that hands some samples on to another model, which is fast in
        full batches only, overrides it and may take several batches before it gives the first output.

        Args:
            batches: Of each batch the `inputs` and `rows` of `predict_rows`.
            processor: The model's `MsaProcessor`.

        Yields:
            The outputs, in the order of the batches.
        """
        for inputs, rows in batches:
            yield self.predict_rows(inputs, rows, processor)

    @property
    def expert_input(self) -> str | None:
        """What an expert is given beside the transcript: `"media"`, the features in `"words"`, or that `"transcript"` alone.

        None for a model that asks none.
        """
        return None

    @property
    def output_columns(self) -> dict[str, tuple[str, ...]]:
        """Names of the columns of outputs of shape `(batch, columns)` that results keep; one-column outputs need none."""
        return {}

    def per_sample_outputs(self, outputs: MsaOutput) -> dict[str, Tensor]:
        """Take from an output all that is a number per sample.

        Args:
            outputs: What forward returned.

        Returns:
            Tensors of shape `(batch,)`: every output of shape `(batch, 1)` by its name, and the columns of those that
            `output_columns` lists as `<output>_<column>`.
        """
        logits = outputs.logits
        if logits is None:
            raise ValueError("The output has no logits; call the model that predicts.")
        found: dict[str, Tensor] = {}
        for name, value in outputs.items():
            if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != len(logits):
                continue
            columns = self.output_columns.get(name, ("",) if value.shape[1] == 1 else ())
            for index, column in enumerate(columns):
                found[f"{name}_{column}" if column else name] = value[:, index]
        return found

    def label_classes(self, labels: Tensor) -> Tensor:
        """The class of each label, as an index into the columns of `class_logits`.

        Here by sign, for three classes. A method with other classes overrides it.

        Args:
            labels (`torch.FloatTensor` of any shape): Scores in label units.

        Returns:
            `torch.LongTensor` of the same shape.
        """
        return sentiment_classes(labels)

    def logged_values(self) -> dict[str, float]:
        """Learned numbers that are worth following while training; they go into the log beside the losses."""
        return {}

    def check_inputs(self, **inputs: Tensor | None) -> None:
        """Check that every modality the model reads is there, with the right width.

        Args:
            **inputs: The forward's own arguments `input_ids`, `audio_values`, `vision_values`.

        Raises:
            ValueError: Naming the modality, the config field and the width that was given.
        """
        for modality in self.config.modalities:
            value = inputs.get(VALUE_KEYS[modality])
            if value is None:
                raise ValueError(
                    f"{type(self).__name__} reads {modality}, but {VALUE_KEYS[modality]!r} was not given; pass zeros with "
                    "an all-zero attention mask for samples that lack it."
                )
        for modality in FEATURE_MODALITIES:
            value, width = inputs.get(VALUE_KEYS[modality]), getattr(self.config, f"{modality}_dim")
            if value is not None and width is not None and value.shape[-1] != width:
                raise ValueError(
                    f"{VALUE_KEYS[modality]} has width {value.shape[-1]}, but this checkpoint was built for "
                    f"{modality}_dim={width}; use features of the same kind as in training."
                )
