"""Configuration of U-ACS."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import LanguageModelSettings, language_model_modalities, local_settings
from .configuration_ubm import UbmConfig


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
        expert_max_new_tokens (`int`): Longest answer.
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
        tau_1, tau_2 (`float`, *optional*): Thresholds of the small model and of the expert, which are sure up to and at
            them; set by calibration on the validation split. Given before training they stay as they are.
        calibration (`dict`, *optional*): The fits behind them, by `small` and `expert`; see
            `hf_msa.training.uacs.thresholds.AgreementFit`.
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
    use_verbalizer: bool = True

    route: Literal["cascade", "fast", "mllm", "random"] = "cascade"
    disagreement_rule: Literal["verify", "weighted", "mllm"] = "verify"
    agreement_rule: Literal["weighted", "accept_mllm"] = "weighted"
    neutral_zone: float | int = 0.05
    epsilon: float | int = 1e-12
    route_seed: int = 0

    threshold_lambda: float | int = 0.5
    threshold_beta: float | int = 0.0
    tau_1: float | int | None = None
    tau_2: float | int | None = None
    calibration: dict[str, Any] | None = None

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
            modalities=language_model_modalities(self, "expert"),
            local=local_settings(self, "expert"),
        )

    def validate_uacs(self) -> None:
        """Check numbers, and that an adapter has a local expert to sit on."""
        self.check_numbers("expert_batch_size", "expert_max_new_tokens", at_least=1)
        language_model_modalities(self, "expert")
        self.check_numbers("neutral_zone", at_least=0)
        self.check_numbers("epsilon", above=0)
        self.check_numbers("threshold_lambda", at_least=0, at_most=1)
        if self.expert_kind == "endpoint" and (self.expert_adapter or self.expert_quantization):
            raise ValueError(
                "A server loads its model itself: leave expert_adapter and expert_quantization out, or set expert_kind to "
                '"local".'
            )
