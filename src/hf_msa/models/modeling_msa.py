"""The base class of all hf_msa models: initialisation, input checks, text backbone, what goes to the Hub."""

import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

import torch
from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_imports

from .configuration_msa import MsaConfig
from .msa_encoders import encode_by_length
from .msa_files import FILES_LIST, check_files, note_files, read_list
from .msa_inputs import INPUT_KEYS, MsaInputs
from .msa_outputs import MsaOutput
from .msa_schema import (
    ATTENTION_MASK_KEYS,
    COMPLETE_ATTENTION_KEYS,
    COMPLETE_KEYS,
    MISSING_MASK_KEYS,
    UNREAD_KEYS,
    VALUE_KEYS,
)

Batch = Mapping[str, Tensor | None] | MsaInputs
"""A batch of the collator or the processor, or what `MsaPreTrainedModel.read` made of one."""

_CODE_STAMP = "# The code of this checkpoint: "
_IMPORT_BY_FULL_NAME = re.compile(r"^from hf_msa\.models\.(\w+) import", re.MULTILINE)
# What `save_pretrained` writes of every model, beside its `SIDE_FILES`.
_SAVED = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py")
_BESIDE = (MISSING_MASK_KEYS, COMPLETE_KEYS, COMPLETE_ATTENTION_KEYS)
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


def read_labels(labels: Tensor, samples: int, name: str = "labels") -> Tensor:
    """Bring labels, or other numbers of which each sample has one, into one shape: losses would pair all with all.

    Args:
        labels (`torch.Tensor` of shape `(batch,)` or `(batch, 1)`, or a scalar for one sample): True scores.
        samples: Number of samples in the batch.
        name: What messages call them.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`.

    Raises:
        ValueError: If there is not one number per sample.
    """
    if tuple(labels.shape) not in ((samples,), (samples, 1)) and (labels.ndim or samples != 1):
        raise ValueError(
            f"{name} have shape {tuple(labels.shape)} for {samples} samples; give one score per sample, of shape "
            f"({samples},) or ({samples}, 1)."
        )
    labels = labels.reshape(samples)
    return labels if labels.is_floating_point() else labels.float()


def bundle_code(folder: Path, configuration: str) -> None:
    """Make the code that was saved with a model do without hf_msa, for a method whose own files lie in another package.

    Those import from the files here by their full names, which the library that copies code does not follow: the files are
    copied, too, and the imports say that they lie beside.

    The configuration's file ends with a hash of all code: checkpoints in folders of one name that agree in this file and in
    what it imports, the library runs all with the model's code that a process loaded first.

    Args:
        folder: The checkpoint's folder.
        configuration: The module that defines its configuration.
    """
    # The library copies what is imported, here too.
    from .msa_pipeline import TASK, MsaPipeline

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["custom_pipelines"] = {TASK: {"impl": f"msa_pipeline.{MsaPipeline.__name__}", "pt": ["AutoModel"]}}
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    waiting = sorted(folder.glob("*.py"))
    while waiting:
        file = waiting.pop()
        code = file.read_text(encoding="utf-8")
        bundled = _IMPORT_BY_FULL_NAME.sub(r"from .\1 import", code)
        if bundled != code:
            file.write_text(bundled, encoding="utf-8")
        for name in get_relative_imports(file):
            source, beside = Path(__file__).with_name(f"{name}.py"), folder / f"{name}.py"
            if source.is_file() and not beside.exists():
                shutil.copyfile(source, beside)
                waiting.append(beside)
    texts = {file: file.read_text(encoding="utf-8").partition(_CODE_STAMP)[0] for file in sorted(folder.glob("*.py"))}
    digest = hashlib.sha256("".join(f"{file.name}\0{text}\0" for file, text in texts.items()).encode()).hexdigest()
    stamped = folder / f"{configuration}.py"
    stamped.write_text(f"{texts[stamped]}{_CODE_STAMP}{digest}\n", encoding="utf-8")


@contextlib.contextmanager
def sound_side_file(name: str) -> Iterator[None]:
    """Say in one sentence that a file beside the weights, which can come from anybody, does not hold what is saved there.

    Args:
        name: The file's name.

    Raises:
        ValueError: In place of whatever its content leads to.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [""])[0].removesuffix(".")
        raise ValueError(
            f"The file {name} beside the checkpoint's weights is damaged ({type(error).__name__}: {why[:200]}); copy "
            "or train the checkpoint again."
        ) from error


def read_side_file(file: Path) -> dict[str, Any]:
    """Read the JSON object of a file beside the weights; NaN and infinities are none.

    Args:
        file: Where it lies.

    Raises:
        ValueError: If it holds no such object.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"it holds {constant}")

    with sound_side_file(file.name):
        values = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
        if not isinstance(values, dict):
            raise TypeError("it holds no object")
    return values


@dataclass(frozen=True)
class SideFile:
    """What lies beside the weights of a checkpoint.

    Args:
        pattern: Its path in the checkpoint's folder, `*` for any part of a name.
        names_models: Whether it is JSON that may name other models by folders of the machine on which it was written, which
            are not published.
    """

    pattern: str
    names_models: bool = False


class MsaPreTrainedModel(PreTrainedModel):
    """Base class of all models; it owns `forward`, and a method implements `compute`.

    A subclass annotates `config` with its configuration class, builds its text backbone as `self.text_encoder`, ends
    `__init__` with `self.post_init()`, and implements::

        def compute(self, inputs: MsaInputs, labels: Tensor | None, *, weight: float = 1.0) -> MyOutput

    Keyword-only parameters of `compute` are what only training gives, each with a default; the return annotation is a
    dataclass made of `MsaOutput`. All of this is checked when the class is created.

    Attributes:
        SIDE_FILES: What a checkpoint may hold beside weights, configuration, processor and code. Saving writes them, pushing
            and its check go by this list.
        COMPONENTS: Parts of the model that can be given a learning rate, beside those that begin a parameter's name: name ->
            a later part of the names of its parameters. A configuration may leave a model without one of them.
        value_names: Of outputs that are a choice per sample, an index among some, the names that the indices stand for.
        reads: The modalities that the model reads, as far as the data has them; None: those of the configuration.
        media: Gives the sound and pictures of a row: `waveform`, `frames` and `frames_per_second`, as far as there are any.
            Of use to a model that asks a language model (`MsaConfig.asks_language_model`), which calls it for those samples
            only that that is asked about. None: rows bring their own, if any.
        answers_folder: Where a model that asks another one may keep the answers, for other processes and later runs. None:
            they are kept for this process, if at all.

    Example:
        ```python
        import hf_msa
        from transformers import AutoModel

        model = AutoModel.from_pretrained("runs/text/seed-1")  # of the class that its method has
        isinstance(model, hf_msa.MsaPreTrainedModel)
        ```
    """

    config: MsaConfig
    text_encoder: PreTrainedModel
    SIDE_FILES: ClassVar[tuple[SideFile, ...]] = ()
    COMPONENTS: ClassVar[Mapping[str, str]] = {}
    value_names: ClassVar[dict[str, tuple[str, ...]]] = {}
    reads: ClassVar[tuple[str, ...] | None] = None
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _auto_class = "AutoModel"
    # All Auto classes under which the saved checkpoint answers; they all give the model that predicts.
    _auto_classes: ClassVar[tuple[str, ...]] = ("AutoModel", "AutoModelForSequenceClassification")
    _supports_sdpa = True
    media: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    answers_folder: Path | None = None
    _origin: tuple[str, dict[str, Any]] | None = None
    # Without this the Trainer believes that forward divides the loss by the number of items, and multiplies it.
    accepts_loss_kwargs = False
    # Names of the keyword-only parameters of `compute`.
    _training_arguments: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what a method has to bring, before anything is trained with it.

        Raises:
            TypeError: If the class overrides `forward`, `compute` has another signature than it must have, does not say what
                it returns, or the class does not say which configuration it has.
        """
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            raise TypeError(
                f"{cls.__name__} defines forward, which the base class owns; implement "
                "compute(self, inputs, labels, *, ...) instead, which gets the same inputs, checked."
            )
        if "compute" not in cls.__dict__:
            return
        _, *parameters = inspect.signature(cls.compute).parameters.values()
        names = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
        training = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        if names != ["inputs", "labels"]:
            raise TypeError(
                f"{cls.__name__}.compute takes {', '.join(names) or 'nothing'}; it has to take inputs and labels, and "
                "behind a * what only training gives."
            )
        taken = {*INPUT_KEYS, *UNREAD_KEYS, "labels", "return_dict"}
        for parameter in training:
            if parameter.default is parameter.empty or parameter.name in taken:
                fault = "has no default" if parameter.default is parameter.empty else "is the name of an input"
                raise TypeError(
                    f"The parameter {parameter.name!r} of {cls.__name__}.compute {fault}; predicting gives none."
                )
        output_class = get_type_hints(cls.compute).get("return")
        if not (isinstance(output_class, type) and issubclass(output_class, MsaOutput)):
            raise TypeError(
                f"{cls.__name__}.compute has to be annotated with what it returns, a class made of MsaOutput."
            )
        if cls.config_class in (None, MsaConfig):
            raise TypeError(f"{cls.__name__} has to say which configuration it has: annotate config with its class.")
        cls._training_arguments = frozenset(parameter.name for parameter in training)
        # The stock Trainer takes for predictions all of an output that is not in this list.
        others = {field.name for field in dataclasses.fields(output_class)} - {"loss", "logits"}
        config_class: Any = cls.config_class
        known = config_class.__dict__.get("keys_to_ignore_at_inference", ())
        config_class.keys_to_ignore_at_inference = sorted(others.union(known))

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

        Raises:
            ValueError: If a folder lacks a file that was saved with the model, or a file of it is cut off.
        """
        name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if name is not None:
            check_files(str(name), cls._saved_files(), kwargs.get("subfolder") or "")
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        if name is not None:
            model._origin = (str(name), {key: kwargs[key] for key in _HUB_OPTIONS if kwargs.get(key) is not None})
        model.load_side_files()
        return loaded

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """Save the weights, and what belongs beside them; see `transformers.PreTrainedModel.save_pretrained`."""
        folder = Path(save_directory)
        if is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            self.save_side_files(folder)
        super().save_pretrained(folder, is_main_process, *args, **kwargs)
        if is_main_process:
            bundle_code(folder, type(self.config).__module__.rpartition(".")[2])
            note_files(folder, self._saved_files())

    @classmethod
    def _saved_files(cls) -> tuple[str, ...]:
        """Patterns of all files that saving may write."""
        return (*_SAVED, *(file.pattern for file in cls.SIDE_FILES))

    def load_side_files(self) -> None:
        """Read what lies beside the weights of the checkpoint that was loaded, see `stored_file`; here nothing."""

    def save_side_files(self, folder: Path) -> None:
        """Write what belongs beside the weights, under names of `SIDE_FILES`; here nothing.

        Args:
            folder: The checkpoint's folder, which exists.
        """

    def stored_file(self, name: str, folder: str = "") -> Path | None:
        """A file beside the weights of the checkpoint that this model was loaded from, fetched where it is on the Hub.

        Args:
            name: The file's name.
            folder: Folder within the checkpoint.

        Returns:
            Where it lies on this machine; None where the checkpoint has no such file, or there is no checkpoint. Offline,
            what is not in the cache counts as absent.

        Raises:
            ValueError: If the file is not there though it was saved with the model, or the Hub cannot be asked: to go on
                without it could predict something else.
        """
        if self._origin is None:
            return None
        checkpoint, options = self._origin
        place = "/".join(part for part in (options.get("subfolder", ""), folder, name) if part)
        if Path(checkpoint).is_dir():
            file = Path(checkpoint) / place
            if file.is_file():
                return file
            self._check_unlisted(folder, name)
            return None
        try:
            return Path(hf_hub_download(checkpoint, place, **{**options, "subfolder": None}))
        except EntryNotFoundError as error:
            # Also said where the Hub could not be asked and the file is not in the cache.
            unknown = isinstance(error, LocalEntryNotFoundError)
            if not unknown or options.get("local_files_only") or is_offline_mode():
                self._check_unlisted(folder, name)
                return None
            why: Exception = error
        except (HTTPError, OSError) as error:
            why = error
        line = (str(why.__cause__ or why).strip().splitlines() or [type(why).__name__])[0].removesuffix(".")
        raise ValueError(
            f"The file {place!r} of the checkpoint {checkpoint!r} could not be fetched ({line}); check the network and the "
            "token (`hf auth login`, or HF_TOKEN), and try again."
        ) from why

    def _check_unlisted(self, folder: str, name: str) -> None:
        """Refuse to do without a file that was saved with the model; see `stored_file`."""
        path = "/".join(part for part in (folder, name) if part)
        listed = None if name == FILES_LIST else self.stored_file(FILES_LIST)
        if listed is not None and path in read_list(listed):
            raise ValueError(
                f"The checkpoint {self.name_or_path!r} is not whole: {path!r} is missing; copy or download all of it again."
            )

    @classmethod
    def from_text_pretrained(cls, text_model: str, config: MsaConfig) -> Self:
        """Build a model around a pretrained text encoder; everything else is initialised anew.

        Args:
            text_model: Folder or Hub name of a BERT-family checkpoint.
            config: The method's configuration; its `text_config` is replaced by that of `text_model`.
        """
        text_encoder, loading = AutoModel.from_pretrained(text_model, dtype=torch.float32, output_loading_info=True)
        fields = config.to_dict() | {"text_config": text_encoder.config.to_dict()}
        model = cls(type(config).from_dict(fields))
        wanted = model.text_encoder.state_dict()
        lacking = sorted(set(loading["missing_keys"]) & set(wanted))
        if lacking:
            # The library fills them with random numbers and goes on.
            raise ValueError(
                f"its checkpoint lacks {len(lacking)} weights of a {type(text_encoder).__name__}, e.g. {lacking[0]!r}; copy "
                "or download it again"
            )
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
            encode_by_length(encode, input_ids, attention_mask, self.text_encoder.config.hidden_size)
            if self.config.mask_padding
            else encode(input_ids, attention_mask)
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_values: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        vision_values: Tensor | None = None,
        vision_attention_mask: Tensor | None = None,
        text_missing_mask: Tensor | None = None,
        audio_missing_mask: Tensor | None = None,
        vision_missing_mask: Tensor | None = None,
        complete_input_ids: Tensor | None = None,
        complete_audio_values: Tensor | None = None,
        complete_vision_values: Tensor | None = None,
        complete_attention_mask: Tensor | None = None,
        complete_audio_attention_mask: Tensor | None = None,
        complete_vision_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **training: Any,
    ) -> Any:
        """Predict the sentiment score of each sample; with labels also compute the loss.

        A batch of the collator can be handed over as it is. Inputs of modalities that the model does not read are left
        alone. Gradient checkpointing is supported for the text encoder. There is no `inputs_embeds`: missing words are
        token ids, and methods read more of the text than its embeddings. Attentions and hidden states are not returned.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): Token ids, dropped tokens already replaced.
            attention_mask (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): 1 = real token, dropped ones
                included; without it every token is.
            audio_values (`torch.FloatTensor` of shape `(batch, frames, audio_dim)`, *optional*): Audio frames, zeros where
                dropped; needed where the model reads audio.
            audio_attention_mask (`torch.LongTensor` of shape `(batch, frames)`, *optional*): 1 = real frame, dropped ones
                included. Without it every frame is real. A sample without audio has the form that the processor gives it.
            vision_values (`torch.FloatTensor` of shape `(batch, frames, vision_dim)`, *optional*): Like audio's.
            vision_attention_mask (`torch.LongTensor` of shape `(batch, frames)`, *optional*): Like audio's.
            text_missing_mask (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): True = dropped. Of use to methods
                that leave out what is dropped; without it nothing counts as dropped.
            audio_missing_mask (`torch.BoolTensor` of shape `(batch, frames)`, *optional*): Likewise.
            vision_missing_mask (`torch.BoolTensor` of shape `(batch, frames)`, *optional*): Likewise.
            complete_input_ids (`torch.LongTensor` of the shape of `input_ids`, *optional*): The text before anything was
                dropped; for training, and for upper bounds.
            complete_audio_values (`torch.FloatTensor` of the shape of `audio_values`, *optional*): Likewise.
            complete_vision_values (`torch.FloatTensor` of the shape of `vision_values`, *optional*): Likewise.
            complete_attention_mask (`torch.LongTensor` of the shape of `attention_mask`, *optional*): 1 = real token of the
                complete text; without it as of `input_ids`.
            complete_audio_attention_mask (`torch.LongTensor` of shape `(batch, frames)`, *optional*): Likewise.
            complete_vision_attention_mask (`torch.LongTensor` of shape `(batch, frames)`, *optional*): Likewise.
            labels (`torch.FloatTensor` of shape `(batch,)` or `(batch, 1)`, *optional*): True scores, in label units.
            return_dict (`bool`, *optional*): False gives a tuple of what is not None; default: as the configuration says.
            **training: What the method's `compute` takes beside the inputs, in training.

        Returns:
            The method's output, made of `MsaOutput`: `logits` of shape `(batch, 1)`, the score in label units, as of every
            regression model in transformers (`num_labels=1`, `problem_type="regression"`); `loss` with labels.

        Raises:
            TypeError: For an argument that the method does not know.
            ValueError: If a modality that the model reads is not given, or shapes do not fit.
        """
        unknown = training.keys() - self._training_arguments - {*UNREAD_KEYS}
        if unknown:
            raise TypeError(self._unknown_arguments(unknown))
        inputs = self.read(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "audio_values": audio_values,
                "audio_attention_mask": audio_attention_mask,
                "vision_values": vision_values,
                "vision_attention_mask": vision_attention_mask,
                "text_missing_mask": text_missing_mask,
                "audio_missing_mask": audio_missing_mask,
                "vision_missing_mask": vision_missing_mask,
                "complete_input_ids": complete_input_ids,
                "complete_audio_values": complete_audio_values,
                "complete_vision_values": complete_vision_values,
                "complete_attention_mask": complete_attention_mask,
                "complete_audio_attention_mask": complete_audio_attention_mask,
                "complete_vision_attention_mask": complete_vision_attention_mask,
            }
        )
        given = {name: value for name, value in training.items() if name in self._training_arguments}
        outputs = self.compute(inputs, None if labels is None else read_labels(labels, len(inputs)), **given)
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if wants_dict else outputs.to_tuple()

    def compute(self, inputs: MsaInputs, labels: Tensor | None) -> MsaOutput:
        """Predict, and with labels compute the loss; what a method implements.

        Args:
            inputs: Checked: every modality that the model reads is there, with an attention mask.
            labels (`torch.FloatTensor` of shape `(batch,)`, *optional*): True scores.

        Returns:
            `logits` of shape `(batch, 1)` and whatever the method says of a sample beside it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no compute; it cannot predict.")

    def _unknown_arguments(self, names: Iterable[str]) -> str:
        """The sentence about arguments of `forward` that there are not."""
        first, *_ = sorted(names)
        if first in ("output_attentions", "output_hidden_states"):
            return f"{first} is not supported; those of the text come from model.text_encoder(..., {first}=True)."
        known = (*INPUT_KEYS, "labels", "return_dict", *sorted(self._training_arguments))
        near = difflib.get_close_matches(first, known, n=1, cutoff=0.5)
        hint = f"the nearest name is {near[0]!r}" if near else f"it takes {', '.join(known)}"
        return f"{type(self).__name__} takes no argument {first!r}; {hint}."

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's token embeddings."""
        embeddings: nn.Module = self.text_encoder.get_input_embeddings()
        return embeddings

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that this model reads of a batch, in schema order."""
        present = self.config.modalities
        return present if self.reads is None else tuple(name for name in present if name in self.reads)

    def read(self, batch: Batch) -> MsaInputs:
        """Take what the model reads out of a batch, and check it.

        Args:
            batch: Inputs by their names, as of `forward`; anything else is left alone. What was read before is given back.

        Returns:
            The inputs of the modalities that the model reads, features in the dtype of its weights; attention masks that
            were not given are ones.

        Raises:
            ValueError: Naming the input and what is wrong: a modality that is not there, a width that is not the
                checkpoint's, a mask or a number of samples that does not fit.
        """
        if isinstance(batch, MsaInputs):
            return batch
        found: dict[str, Tensor | None] = {}
        for modality in self.modalities:
            key = VALUE_KEYS[modality]
            value = batch.get(key)
            if value is None:
                raise ValueError(
                    f"{type(self).__name__} reads {modality}, but {key!r} was not given; the processor makes it, also for "
                    "samples that are without it."
                )
            self._check_values(modality, value, batch)
            mask = batch.get(ATTENTION_MASK_KEYS[modality])
            if mask is None:
                mask = torch.ones(value.shape[:2], dtype=torch.long, device=value.device)
            found |= {key: value, ATTENTION_MASK_KEYS[modality]: mask}
            found |= {keys[modality]: batch.get(keys[modality]) for keys in _BESIDE}
        # Features are float32 whatever the weights are.
        kind = self.dtype
        read = {
            key: value.to(kind) if value is not None and value.is_floating_point() else value
            for key, value in found.items()
        }
        return MsaInputs(**read)  # type: ignore[arg-type]  # text is always among them

    def _check_values(self, modality: str, value: Tensor, batch: Mapping[str, Tensor | None]) -> None:
        """Check the shapes of a modality's values and masks; see `read`."""
        key, axes = VALUE_KEYS[modality], 2 if modality == "text" else 3
        samples = batch[VALUE_KEYS["text"]].shape[0]  # type: ignore[union-attr]  # text comes first
        width = None if modality == "text" else getattr(self.config, f"{modality}_dim")
        if value.ndim != axes or len(value) != samples:
            wanted = f"({samples}, tokens)" if width is None else f"({samples}, frames, {width})"
            raise ValueError(f"{key} has shape {tuple(value.shape)}; give {wanted}.")
        if width is not None and value.shape[-1] != width:
            raise ValueError(
                f"{key} has width {value.shape[-1]}, but this checkpoint was built for {modality}_dim={width}; use features "
                "of the same kind as in training."
            )
        for keys in (ATTENTION_MASK_KEYS, *_BESIDE):
            beside = batch.get(keys[modality])
            if beside is not None and beside.shape[:2] != value.shape[:2]:
                raise ValueError(
                    f"{keys[modality]} has shape {tuple(beside.shape)} beside {key} of shape {tuple(value.shape)}; they "
                    "have to agree in samples and positions."
                )

    def inputs_from(self, batch: Mapping[str, Tensor], *, predicting: bool) -> dict[str, Tensor]:
        """Choose what `forward` is to be given of a collated batch; the one rule for training and evaluation.

        Args:
            batch: Of `hf_msa.data.collator.MsaCollator`.
            predicting: Whether this is a prediction, which gets what a user has: neither labels nor complete inputs, unless
                the configuration says that the model reads them (`MsaConfig.oracle_inputs`).
        """
        complete = (*COMPLETE_KEYS.values(), *COMPLETE_ATTENTION_KEYS.values())
        hidden = {"labels", *complete} - {*self.config.oracle_inputs} if predicting else set()
        return {key: batch[key] for key in (*INPUT_KEYS, "labels") if key in batch and key not in hidden}

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
    def language_model_input(self) -> str | None:
        """What a language model is given, None for a model that asks none.

        The transcript with `"media"`, with `"media_audio"` or `"media_vision"` alone, with features in `"words"`, or the
        `"transcript"`.
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

    @classmethod
    def cost_of(cls, columns: Mapping[str, Any]) -> dict[str, Any] | None:
        """What predictions have cost, for results; None for a model that asks no other one.

        Args:
            columns: Numbers per sample, arrays `(samples,)`, by their names; see `per_sample_outputs`.

        Returns:
            Means over the samples: `calls`, questions to another model, `prompt_tokens` of these (None where that is not
            known), `tokens` that it wrote, `seconds`; shares of the questions (None without any): `remembered`, answered
            before, and `unreadable`, with no answer that could be read; `routes`, the shares of samples by who answered,
            empty where there is one way.
        """
        return None

    def label_classes(self, labels: Tensor) -> Tensor:
        """The class of each label, as an index into the columns of `class_logits`.

        Here negative, neutral and positive. A method with other classes overrides it.

        Args:
            labels (`torch.FloatTensor` of any shape): Scores in label units.

        Returns:
            `torch.LongTensor` of the same shape.
        """
        return self.config.family.polarity(labels)

    def component_of(self, parameter: str) -> str:
        """The component that a parameter belongs to, for learning rates and weight decays of its own.

        Args:
            parameter: The parameter's name.
        """
        first, *inner = parameter.split(".")
        return next((name for name, part in self.COMPONENTS.items() if part in inner), first)

    def logged_values(self) -> dict[str, float]:
        """Learned numbers that are worth following while training; they go into the log beside the losses."""
        return {}


class MsaStageModel(MsaPreTrainedModel):
    """Base class of models that only a stage of training needs: saved and loaded by their own class, not an Auto class."""

    _auto_class: Any = None
    _auto_classes: ClassVar[tuple[str, ...]] = ()
