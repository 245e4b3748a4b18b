"""The configuration that every method shares: widths and lengths by modality name, text backbone, label range."""

import dataclasses
import math
import operator
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .msa_label_families import LabelFamily
from .msa_schema import MODALITIES

AUTO = "auto"
_VARIABLE = re.compile("[A-Z_][A-Z0-9_]*")
_HUB_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class ServerSettings:
    """How a language model on a server is asked.

    Args:
        served_model: What the server calls it; None: the only one that it serves.
        key_variable: Name of the environment variable that holds the server's key; None: none is named.
        top_logprobs: Tokens to list at each position.
        timeout: Seconds in which one answer has to be there.
        retries: Further attempts after a failure that may pass.
        concurrency: Requests under way at once.
    """

    served_model: str | None
    key_variable: str | None
    top_logprobs: int
    timeout: float
    retries: int
    concurrency: int


@dataclass(frozen=True)
class LocalSettings:
    """How a language model on this machine is loaded; see `LocalMllm.from_pretrained`.

    Args:
        dtype: Type of its weights; `"auto"`: that of its checkpoint.
        device_map: How it is spread over devices; None: the GPU where there is one.
        attention: Implementation of its attention; None: the library's default.
        revision: Branch, tag or commit of its repository.
    """

    dtype: str
    device_map: str | dict[str, Any] | None
    attention: str | None
    revision: str | None


Settings = TypeVar("Settings", ServerSettings, LocalSettings)


@dataclass(frozen=True)
class LanguageModelSettings:
    """Which language model a configuration names, and how it is loaded.

    Args:
        role: What the method calls it, e.g. `"expert"`.
        field: The configuration's field that names it.
        name: Folder or Hub name, or the URL of a server; None where none is named.
        kind: `"local"`, or `"endpoint"` for a server.
        adapter_field: The configuration's field that says whether it has an adapter.
        has_adapter: Whether it has a LoRA adapter, in the folder `adapter` beside the configuration.
        quantization: How a local one is loaded; None: as it is.
        batch_size: Requests that a local one answers together.
        without: What to set to do without one, e.g. `'route="fast"'`.
        server: How one on a server is asked.
        modalities: What it is given in raw form, where a sample has it; `"auto"`: all that it takes.
        local: How one on this machine is loaded.
    """

    role: str
    field: str
    name: str | None
    kind: Literal["local", "endpoint"]
    adapter_field: str
    has_adapter: bool
    quantization: Literal["8bit", "4bit"] | None
    batch_size: int
    without: str
    server: ServerSettings
    modalities: str | tuple[str, ...]
    local: LocalSettings


@strict
class MsaConfig(PreTrainedConfig):
    r"""Base configuration of all hf_msa methods. Shapes come from the data; the defaults are those of unaligned MOSI.

    Every model predicts one score, `logits` of shape `(batch, 1)` in label units: `num_labels` is 1 and `problem_type`
    `"regression"`, for all methods and all Auto classes. What a method says of classes is an output of its own
    (`class_logits`).

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the BERT-family text encoder; a dict needs `model_type`. Default: bert-base.
        audio_dim (`int`, *optional*): Width of an audio frame. `None`: the data has no audio.
        vision_dim (`int`, *optional*): Width of a vision frame. `None`: the data has no vision.
        text_max_length (`int`): Longest text in tokens, `[CLS]` and `[SEP]` included.
        audio_max_length (`int`): Longest audio sequence in frames.
        vision_max_length (`int`): Longest vision sequence in frames.
        label_family (`str` or `dict`): `"mosi"`, `"sims"`, or the description of another family, see `LabelFamily`: the
            range of labels, their classes, and the metrics that apply.
        mask_padding (`bool`): Whether attention leaves padded positions out. False is what the public LNLN code does;
            predictions then depend on the padded length, so batches must be padded to fixed lengths.

    Example:
        ```python
        from hf_msa import MsaConfig

        MsaConfig(audio_dim=5, vision_dim=None).modalities  # ("text", "audio"): the data has no vision
        ```
    """

    model_type = "hf_msa_base"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}
    _auto_class: ClassVar[str] = "AutoConfig"

    # Named rows of the paper's ablation table: name -> the fields that differ from the full method.
    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {}
    # The modalities that the method can read; a model reads those of them that the data has.
    READS: ClassVar[tuple[str, ...]] = MODALITIES
    # Modalities (beside text) of which at least one must exist; empty: text alone will do.
    NEEDS_ONE_OF: ClassVar[tuple[str, ...]] = ()
    # Whether the model itself brings features of any scale to one, so that raw ones will do.
    NORMALISES_FEATURES: ClassVar[bool] = False

    # A dict or a configuration of transformers; the library's own annotation is not precise enough for a type checker.
    text_config: Any = None
    audio_dim: int | None = 5
    vision_dim: int | None = 20
    text_max_length: int = 50
    audio_max_length: int = 375
    vision_max_length: int = 500
    label_family: str | dict[str, Any] = "mosi"
    mask_padding: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what the library expects of a regression model, then check."""
        if self.id2label is not None and tuple(self.id2label.values()) == self.class_names:
            # Checkpoints of classifying methods named the classes here once, beside a logit that is a score.
            self.id2label, self.label2id, self.problem_type = None, None, None
        asked = kwargs.pop("num_labels", None) or len(self.id2label or {0: ""})
        if asked != 1 or self.problem_type not in (None, "regression"):
            raise ValueError(
                f"num_labels is {asked} and problem_type {self.problem_type!r}, but every model of hf_msa predicts one "
                "score; leave both out."
            )
        if not type(self).__module__.startswith("transformers_modules."):
            # A checkpoint's own pipeline is for those without hf_msa; here it would ask for leave to run its code.
            kwargs.pop("custom_pipelines", None)
        self.problem_type = "regression"
        self.id2label = self.id2label or {0: "sentiment"}
        self.label2id = dict.fromkeys(self.id2label.values(), 0)
        super().__post_init__(num_labels=1, **kwargs)
        # A path on the machine of whoever trained the model is of no use to anyone else.
        self.text_config._name_or_path = ""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model reads, in schema order."""
        return tuple(name for name in self.READS if name == "text" or getattr(self, f"{name}_dim") is not None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the columns of `class_logits`, for methods that have such an output."""
        return ()

    def check_numbers(
        self,
        *names: str,
        at_least: float | None = None,
        above: float | None = None,
        at_most: float | None = None,
        below: float | None = None,
        hint: str = "",
    ) -> None:
        """Check fields that hold numbers; None passes, as it means that there is none.

        Args:
            *names: The fields.
            at_least, above, at_most, below: The bounds.
            hint: What to do instead, for the end of the message.

        Raises:
            ValueError: If one is outside the bounds, not finite or no number.
        """
        bounds = {
            "at least": (at_least, operator.ge),
            "above": (above, operator.gt),
            "at most": (at_most, operator.le),
            "below": (below, operator.lt),
        }
        for name in names:
            value = getattr(self, name)
            if value is None:
                continue
            kept = (bound is None or keeps(value, bound) for bound, keeps in bounds.values())
            if not math.isfinite(value) or not all(kept):
                said = " and ".join(f"{word} {bound:g}" for word, (bound, _) in bounds.items() if bound is not None)
                raise ValueError(f"{name} must be {said}, got {value}{hint}.")

    @property
    def family(self) -> LabelFamily:
        """The label family."""
        return LabelFamily.of(self.label_family)

    @property
    def label_range(self) -> tuple[float, float]:
        """Lowest and highest possible label."""
        return self.family.low, self.family.high

    @property
    def oracle_inputs(self) -> tuple[str, ...]:
        """Batch keys that predicting reads although no user has them: ``"labels"`` or ``"complete_..."`` inputs."""
        return ()

    @property
    def is_oracle(self) -> bool:
        """Whether predicting needs what no user has, e.g. the true labels: an upper bound, not a usable model."""
        return bool(self.oracle_inputs)

    @property
    def asks_language_model(self) -> bool:
        """Whether the method asks a language model, which can make use of words, sound and pictures themselves."""
        return self.language_model is not None

    @property
    def language_model(self) -> LanguageModelSettings | None:
        """The language model that the configuration names; None for a method that has no use for one."""
        return None

    def validate_msa(self) -> None:
        """Check widths and lengths, the label family, and that a modality exists without which the method makes no sense."""
        LabelFamily.of(self.label_family)
        self.check_numbers("text_max_length", "audio_max_length", "vision_max_length", at_least=1)
        self.check_numbers("audio_dim", "vision_dim", at_least=1, hint="; leave a modality out with None")
        if self.NEEDS_ONE_OF and not any(getattr(self, f"{name}_dim") for name in self.NEEDS_ONE_OF):
            raise ValueError(
                f"{type(self).__name__} needs at least one of {', '.join(self.NEEDS_ONE_OF)} beside text, but the data "
                "has none; use the method 'text' for text alone."
            )


def settings_of(config: MsaConfig, role: str, kind: type[Settings]) -> Settings:
    """How a language model is asked or loaded, out of the fields that begin with its role.

    Args:
        config: A configuration that names one.
        role: `"expert"` or `"planner"`.
        kind: `ServerSettings` or `LocalSettings`.
    """
    return kind(**{field.name: getattr(config, f"{role}_{field.name}") for field in dataclasses.fields(kind)})


def check_server(config: MsaConfig, role: str) -> None:
    """Check the fields of `ServerSettings`.

    Raises:
        ValueError: If a number is outside its bounds, or a key stands where its variable should be named.
    """
    config.check_numbers(f"{role}_top_logprobs", f"{role}_concurrency", at_least=1)
    config.check_numbers(f"{role}_retries", at_least=0)
    config.check_numbers(f"{role}_timeout", above=0)
    variable = getattr(config, f"{role}_key_variable")
    if variable is not None and (not _VARIABLE.fullmatch(variable) or variable in _HUB_VARIABLES):
        # What was given is not repeated: it may be the key itself.
        raise ValueError(
            f"{role}_key_variable must be the name of an environment variable in capitals that holds the server's key, "
            "not the key itself, and not that of the Hub's token, which goes to the Hub only."
        )


def language_model_modalities(config: MsaConfig, role: str) -> str | tuple[str, ...]:
    """What a language model is given in raw form: `"auto"`, or names of modalities in the order of `MODALITIES`.

    Args:
        config: A configuration that names one.
        role: `"expert"` or `"planner"`.

    Raises:
        ValueError: If it is neither.
    """
    given = getattr(config, f"{role}_modalities")
    if given == AUTO:
        return AUTO
    if isinstance(given, str) or "text" not in given or not set(given) <= set(MODALITIES):
        raise ValueError(
            f"{role}_modalities is {given!r}; give {AUTO!r} for all that the model takes, or a list of text and of those of "
            "audio and vision that it is to be given."
        )
    return tuple(name for name in MODALITIES if name in given)
