"""Configuration of U-ACS."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import (
    LanguageModelSettings,
    LocalSettings,
    ServerSettings,
    check_server,
    language_model_modalities,
    settings_of,
)
from .configuration_ubm import UbmConfig
from .msa_mllm_numbers import check_room, writable_numbers
from .uacs_rules import threshold

FITS = {"tau_1": "small", "tau_2": "expert"}
"""Thresholds -> whose uncertainty is fitted for them in `calibration`."""

# What changes the small model's uncertainty, or how its threshold is found.
_OF_SMALL = (
    *("uncertainty_kind", "temperature", "dropout_passes", "dropout_seed", "conformal_coverage"),
    *("budget_share", "budget_seconds"),
)
# Of the expert's fields, those on which no answer depends.
_WITHOUT_EFFECT = tuple(
    f"expert_{name}"
    for name in (
        "attention",
        "batch_size",
        "concurrency",
        "device_map",
        "key_variable",
        "retries",
        "timeout",
    )
)


@strict
class UacsConfig(UbmConfig):
    r"""U-ACS: a small model answers what it is sure of, a multimodal language model (the expert) the rest.

    Paper: "Uncertainty-Aware Collaborative System of Large and Small Models for Multimodal Sentiment Analysis", arXiv
    2509.04459 v1. The fields of `UbmConfig` are the small model's. Equations are the paper's; ours = it does not say.

    Expert:
        expert_model (`str`, *optional*): Folder, Hub name or GGUF file of the expert, or the URL of a server that has it.
            `None`: there is none, and only `route="fast"` can predict.
        expert_kind: `"local"`, or `"endpoint"` for a server.
        expert_adapter (`bool`): The expert has a LoRA adapter, in the folder `adapter` beside this configuration.
        expert_quantization: Load a local expert in `"8bit"` or `"4bit"` (ours).
        expert_batch_size (`int`): Requests that a local expert answers together.
        expert_dtype (`str`), expert_device_map, expert_attention (`str`, *optional*), expert_revision (`str`, *optional*):
            How a local expert is loaded: type of the weights, spread over devices (`"auto"`: all GPUs), implementation of
            attention, commit (ours).
        expert_modalities: What the expert is given in raw form: `"auto"`, all that it takes, or a list of text and of audio
            and vision; the rest is left out, which its prompt says (ours).
        expert_max_new_tokens (`int`): Longest answer, with what the expert thinks before it.
        expert_constrained (`bool`): Let the expert write nothing but a score of one decimal within the label range (ours).
        expert_served_model (`str`, *optional*): What the server calls the model. `None`: the only one that it serves.
        expert_key_variable (`str`, *optional*): Name of the environment variable that holds the server's key; the key
            itself is in no configuration.
        expert_top_logprobs (`int`): Tokens that the server lists at each position, from which entropies are worked out; as
            many as it allows, if that is fewer.
        expert_timeout (`float`): Seconds in which it has to answer.
        expert_retries (`int`): Further attempts where it does not, is busy or fails.
        expert_concurrency (`int`): Requests that are under way at once.
        use_verbalizer (`bool`): Describe features in words to the expert where it is not given the sound or the pictures
            and the data names the features (ours; the paper's expert sees the video). The statistics that it needs lie
            beside this configuration.

    Cascade:
        route: `"cascade"` (eq. 13-16); `"fast"`: the small model alone; `"mllm"`: the expert alone; `"random"`: the expert
            answers as many samples as the cascade would hand on, but random ones, and is always believed.
        disagreement_rule: What is done where both are uncertain and differ in polarity: `"verify"` asks the expert again
            (eq. 16), `"weighted"` averages, `"mllm"` takes the expert's answer.
        agreement_rule: And where they do not differ: `"weighted"` (eq. 15), or `"accept_mllm"` as in v2 of the paper.
        neutral_zone (`float`): Scores below it in size are neither positive nor negative (ours).
        epsilon (`float`): Added to uncertainties before they divide (eq. 15; value: ours).
        route_seed (`int`): Of the random route.

    Thresholds:
        threshold_lambda (`float`), threshold_beta (`float`): A threshold is (1 - lambda) * mean uncertainty of the samples
            whose polarity is right + lambda * that of the others + beta (eq. 12).
        budget_share (`float`, *optional*): In the place of lambda and beta for the small model: hand on at most this share
            of the samples, as measured on the validation split (ours).
        budget_seconds (`float`, *optional*): Likewise at most so many seconds per sample on average (ours).
        tau_1, tau_2 (`float`, *optional*): Thresholds of the small model and of the expert, which are sure up to and at
            them; set by calibration on the validation split. Given before training they stay as they are.
        calibration (`dict`, *optional*): The fits behind them, by `small` and `expert`; see
            `hf_msa.training.uacs.thresholds.AgreementFit`.
        calibrated_with (`dict`, *optional*): Which expert gave the answers that `tau_2` was set by (`model`, `adapter`: hash
            of its weights), and a hash of how it was asked (`wording`). With another one or other questions the model
            refuses to use the threshold. `None`: it is not known, or the threshold was given.

    A checkpoint that is loaded with another lambda or beta has the thresholds that these give by its stored fits. What its
    thresholds do not hold for (another expert, another uncertainty) is refused, unless thresholds are given with it.

    Example:
        ```python
        from hf_msa import UacsConfig

        UacsConfig(audio_dim=5, vision_dim=20, route="fast")
        ```
    """

    model_type = "hf_msa_uacs"

    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {
        **UbmConfig.ABLATIONS,
        "wo_cross_verification": {"disagreement_rule": "weighted"},
        "wo_cross_verification_mllm": {"disagreement_rule": "mllm"},
        "wo_uncertainty": {"route": "random"},
        "accept_mllm": {"agreement_rule": "accept_mllm"},
        "ubm_only": {"route": "fast"},
        "mllm_only": {"route": "mllm"},
        "wo_lora": {"expert_adapter": False},
        "wo_verbalizer": {"use_verbalizer": False},
        **{f"lambda_{value:g}": {"threshold_lambda": value} for value in (0.0, 0.25, 0.75, 1.0)},
        **{f"beta_{value:g}": {"threshold_beta": value} for value in (-0.2, -0.1, 0.1, 0.2)},
        **{f"budget_{share}": {"budget_share": share / 100} for share in (10, 20, 30, 50)},
    }

    expert_model: str | None = None
    expert_kind: Literal["local", "endpoint"] = "local"
    expert_adapter: bool = False
    expert_quantization: Literal["8bit", "4bit"] | None = None
    expert_batch_size: int = 8
    expert_dtype: str = "auto"
    expert_device_map: str | dict[str, Any] | None = None
    expert_attention: str | None = None
    expert_revision: str | None = None
    expert_modalities: str | list[str] | tuple[str, ...] = "auto"
    expert_max_new_tokens: int = 16
    expert_constrained: bool = False
    expert_served_model: str | None = None
    expert_key_variable: str | None = None
    expert_top_logprobs: int = 20
    expert_timeout: float | int = 120.0
    expert_retries: int = 4
    expert_concurrency: int = 4
    use_verbalizer: bool = True

    route: Literal["cascade", "fast", "mllm", "random"] = "cascade"
    disagreement_rule: Literal["verify", "weighted", "mllm"] = "verify"
    agreement_rule: Literal["weighted", "accept_mllm"] = "weighted"
    neutral_zone: float | int = 0.05
    epsilon: float | int = 1e-12
    route_seed: int = 0

    threshold_lambda: float | int = 0.5
    threshold_beta: float | int = 0.0
    budget_share: float | int | None = None
    budget_seconds: float | int | None = None
    tau_1: float | int | None = None
    tau_2: float | int | None = None
    calibration: dict[str, Any] | None = None
    calibrated_with: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of stored values and changes of them; see the class on changes that concern thresholds.

        Raises:
            ValueError: If the stored thresholds do not hold for a change, or a change of lambda or beta has no effect.
        """
        _check_thresholds_hold(config_dict, kwargs)
        if "tau_2" in kwargs:
            kwargs = {"calibrated_with": None, **kwargs}
        return super().from_dict(config_dict, **kwargs, **_moved_thresholds(config_dict, kwargs))

    @property
    def asks_language_model(self) -> bool:
        """Whether the expert is ever asked."""
        return self.route != "fast"

    @property
    def language_model(self) -> LanguageModelSettings:
        """The expert."""
        return LanguageModelSettings(
            role="expert",
            field="expert_model",
            name=self.expert_model,
            kind=self.expert_kind,
            adapter_field="expert_adapter",
            has_adapter=self.expert_adapter,
            quantization=self.expert_quantization,
            batch_size=self.expert_batch_size,
            without='route="fast"',
            server=settings_of(self, "expert", ServerSettings),
            modalities=language_model_modalities(self, "expert"),
            local=settings_of(self, "expert", LocalSettings),
        )

    def validate_uacs(self) -> None:
        """Check numbers, that a score fits into an answer, and that an adapter has a local expert to sit on."""
        self.check_numbers("expert_batch_size", "expert_max_new_tokens", at_least=1)
        check_server(self, "expert")
        language_model_modalities(self, "expert")
        self.check_numbers("neutral_zone", at_least=0)
        self.check_numbers("epsilon", above=0)
        self.check_numbers("threshold_lambda", at_least=0, at_most=1)
        if self.budget_share is not None:
            self.check_numbers("budget_share", at_least=0, at_most=1)
        if self.budget_seconds is not None:
            self.check_numbers("budget_seconds", above=0)
        if self.budget_share is not None and self.budget_seconds is not None:
            raise ValueError(
                "budget_share and budget_seconds both say how many samples are handed on; give one of them."
            )
        if self.expert_constrained:
            check_room(writable_numbers(*self.label_range), self.expert_max_new_tokens)
        if self.expert_kind == "endpoint" and (self.expert_adapter or self.expert_quantization):
            raise ValueError(
                "A server loads its model itself: leave expert_adapter and expert_quantization out, or set expert_kind to "
                '"local".'
            )


def _check_thresholds_hold(stored: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    route = changes.get("route", stored.get("route", "cascade"))
    for tau in {"cascade": ("tau_1", "tau_2"), "random": ("tau_1",)}.get(route, ()):
        fits = changes.get("calibration", stored.get("calibration")) or {}
        if tau in changes or stored.get(tau) is None or FITS[tau] not in fits:
            continue
        for field, value in changes.items():
            if field in stored and _invalidates(field, tau) and not _is_same(field, stored[field], value):
                raise ValueError(
                    f"{tau} was calibrated with {field}={stored[field]!r} and does not hold for {value!r}; run `hf-msa "
                    f"calibrate RUN --set {field}={value}`, which trains nothing, or give {tau} itself."
                )


def _invalidates(field: str, tau: str) -> bool:
    if tau == "tau_1":
        return field in _OF_SMALL
    return field == "use_verbalizer" or (field.startswith("expert_") and field not in _WITHOUT_EFFECT)


def _is_same(field: str, stored: Any, value: Any) -> bool:
    """Whether a change is none; of a model, wherever it lies, the last part of its name is what is published."""
    if field == "expert_model" and isinstance(stored, str) and isinstance(value, str):
        return published_name(stored) == published_name(value)
    return bool(stored == value)


def published_name(model: str) -> str:
    """What is published of a model's name: the last part of a path or Hub name, of a server all of it."""
    return model if "://" in model else model.rstrip("/").rpartition("/")[2]


def _moved_thresholds(stored: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, float]:
    """The thresholds of the stored fits at another lambda or beta, where they were made of them."""
    names = ("threshold_lambda", "threshold_beta")
    before = [stored.get(name, getattr(UacsConfig, name)) for name in names]
    after = [changes.get(name, value) for name, value in zip(names, before, strict=True)]
    if after == before or "calibration" in changes:
        return {}
    fits = stored.get("calibration") or {}
    made = [
        tau
        for tau, name in FITS.items()
        if stored.get(tau) is not None and name in fits and threshold(fits[name], *before) == stored[tau]
    ]
    if not made and not changes.keys() & FITS.keys():
        raise ValueError(
            f"{next(name for name in names if name in changes)} has no effect here: the thresholds were not made of fitted "
            "means, but given, set for a budget, or never calibrated; give tau_1 and tau_2, or run `hf-msa calibrate`."
        )
    moved = {tau: threshold(fits[FITS[tau]], *after) for tau in made if tau not in changes}
    return {tau: value for tau, value in moved.items() if value is not None}
