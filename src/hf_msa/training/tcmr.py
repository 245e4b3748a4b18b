"""Training of TCMR: two pre-training stages, then the alternating optimisation (paper section 3.7, Algorithm 1).

Stages by the value of `TcmrConfig.optimization` (paper Table 3, section 5):
    aos, end2end: polarity, regressor, main
    confnet_first: polarity, regressor, confidence (text encoder + ConfNet), main (both frozen)
    confnet_later: polarity, regressor, main (with the target confidence), confidence (ConfNet alone)
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_msa.data.rows import DrawnRows
from hf_msa.errors import MsaError
from hf_msa.files import atomic_write
from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis, TcmrPolarityClassifier, TcmrTextRegressor
from hf_msa.models.msa_encoders import TokenTransformer
from hf_msa.models.msa_schema import MODALITIES

from .optimizers import AlternatingOptimizer
from .stages import RunContext
from .trainer import MsaTrainer

STAGES = ("polarity", "regressor", "confidence", "main")
FINAL_STAGE = "main"
RATE_FREE_STAGES = ("polarity", "regressor")
SHARED_STAGES = RATE_FREE_STAGES
# Of the configuration, what the two text models do not depend on.
LATER_FIELDS = (
    *("generator_layers", "refinement_layers", "cross_layers", "reconstructor_layers", "hyper_head_dim"),
    *("confnet_hidden", "gate_hidden", "optimization", "proxy", "confidence_target", "confidence_source"),
    *("detach_confidence", "fusion_style", "target_norm", "center_text", "start_from_regressor"),
    *("reconstruction_reduction", "w_conf", "w_rec_text", "w_rec_aux", "w_task", "w_rec_proxy"),
)
# What the analysis tools judge by: confidences by the true-class probability, rebuilt text by complete-text features.
KEPT = ("polarity/model/*", "regressor/model/*")


def stages_of(config: TcmrConfig) -> tuple[str, ...]:
    """The stages of a run, see above."""
    last = {"confnet_first": ("confidence", "main"), "confnet_later": ("main", "confidence")}
    return ("polarity", "regressor", *(("main",) if config.is_oracle else last.get(config.optimization, ("main",))))


class TcmrTrainer(MsaTrainer):
    """Gives TCMR its targets: pseudo-confidence from the frozen classifier, complete-text features from the cache.

    Args:
        classifier: The frozen polarity classifier (eq. 7); `None` where the confidence target does not need it.
        text_targets: Complete-text features of all training rows `(rows, 8, width)` (eq. 11).
        objective: What is minimised: see `TcmrForSentimentAnalysis.forward`.
        oracle: Mix with the target confidence instead of the predicted one (eq. 10).
    """

    model: TcmrForSentimentAnalysis
    classifier: TcmrPolarityClassifier | None
    objective: str

    def __init__(
        self,
        *args: Any,
        classifier: TcmrPolarityClassifier | None = None,
        text_targets: Tensor | None = None,
        objective: str = "all",
        oracle: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if classifier is not None:
            classifier.to(self.args.device)  # type: ignore[arg-type]  # the library wraps `to`; type checkers misread it
            classifier.eval().requires_grad_(False)
        self.classifier = classifier
        self.text_targets = text_targets
        self.objective = objective
        self.oracle = oracle

    def training_objective(self, inputs: dict[str, Tensor]) -> str:
        """The objective of this batch."""
        return self.objective

    def confidence_targets(self, inputs: dict[str, Tensor]) -> Tensor:
        """The confidence label c of each sample `(batch,)` under the batch's own mask (eq. 7, or 1 - r without TCE)."""
        if self.model.config.confidence_target == "completeness":
            return 1.0 - inputs["missing_rates"][:, MODALITIES.index("text")].nan_to_num(0.0)
        if self.classifier is None:
            raise ValueError(
                "The true-class probability is the confidence's target, so a polarity classifier is needed."
            )
        targets: Tensor = self.classifier.true_class_probability(
            inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        )
        return targets

    def model_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """Objective and targets of this batch."""
        objective = self.training_objective(inputs) if training else self.objective
        if not training and objective in ("other", "all"):
            objective = "task"
        given: dict[str, Any] = {"objective": objective}
        if self.oracle or objective in ("confidence", "all"):
            given["confidence_targets"] = self.confidence_targets(inputs)
        if self.oracle:
            given["confidence"] = given["confidence_targets"]
        if training and objective in ("other", "all") and self.text_targets is not None:
            rows = inputs["sample_index"].to(self.text_targets.device)
            given["text_targets"] = self.text_targets[rows].to(inputs["labels"].device, torch.float32)
        return given


class AlternatingTcmrTrainer(TcmrTrainer):
    """The alternating optimisation strategy: phase A for the confidence, phase B for the rest, within every epoch."""

    passes = 2
    _PHASES = ("confidence", "other")

    def training_objective(self, inputs: dict[str, Tensor]) -> str:
        """The phase of this batch; it also chooses the optimizer that the next step runs."""
        phase = self._PHASES[int(inputs["draw"][0]) % self.passes]
        # The Trainer holds accelerate's wrapper around the optimizer.
        cast(AlternatingOptimizer, getattr(self.optimizer, "optimizer", self.optimizer)).activate(phase)
        return phase

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Two optimizers that share the text encoder's tensors, each with moments of its own."""
        if self.optimizer is None:
            named = list(self.model.named_parameters())
            groups = {"confidence": self.model.confidence_parameters(), "other": self.model.other_parameters()}
            members = {name: {id(parameter) for parameter in group} for name, group in groups.items()}
            self.optimizer = AlternatingOptimizer(
                {
                    name: self.build_optimizer([item for item in named if id(item[1]) in members[name]])
                    for name in self._PHASES
                }
            )
        return self.optimizer


def complete_text_features(context: RunContext, regressor: TcmrTextRegressor, path: Path) -> Tensor:
    """Features of every complete training text `(rows, 8, width)`, computed once and cached in half precision (eq. 11)."""
    if not path.is_file():
        rows = context.rows["train"]
        loader = DataLoader(DrawnRows(rows, 1), batch_size=64, collate_fn=context.complete_collator("train"))
        with torch.no_grad():
            parts = [
                regressor(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).features.half()
                for batch in loader
            ]
        with atomic_write(path) as temporary:
            save_file({"features": torch.cat(parts)}, temporary)
    return load_file(path)["features"]


def start_model(model: TcmrForSentimentAnalysis, regressor: TcmrTextRegressor, targets: Tensor) -> None:
    """Start a new model from what the text regressor has learned, as far as its configuration says so.

    Args:
        model: Changed in place.
        regressor: The trained text regressor.
        targets: Its features of all complete training texts `(rows, num_tokens, hidden_size)`.

    Raises:
        MsaError: If these are all alike.
    """
    if model.config.start_from_regressor:
        model.encoders["text"].load_state_dict(regressor.encoder.state_dict())
        learned, count = regressor.encoder.transformer, model.config.num_tokens
        generators = () if model.proxy_generator is None else model.proxy_generator.generators.values()
        with torch.no_grad():
            for generator in cast("Iterable[TokenTransformer]", generators):
                cast(Tensor, generator.tokens).copy_(cast(Tensor, learned.tokens))
                generator.positions[:count].copy_(learned.positions[:count])
    try:
        model.measure_targets(targets)
    except ValueError as error:
        raise MsaError(str(error)) from error


def run(context: RunContext) -> MsaPreTrainedModel:
    """Run all stages of TCMR; see the module's docstring for which there are."""
    config = context.config
    classifier = context.train_stage("polarity", TcmrPolarityClassifier, complete=True, later_fields=LATER_FIELDS)
    regressor = context.train_stage("regressor", TcmrTextRegressor, complete=True, later_fields=LATER_FIELDS)
    targets = complete_text_features(context, regressor, context.stage_folder("regressor") / "features.safetensors")
    teachers: dict[str, Any] = {"classifier": classifier, "text_targets": targets}

    def started() -> TcmrForSentimentAnalysis:
        model = context.new_model(TcmrForSentimentAnalysis)
        start_model(model, regressor, targets)
        return model

    def main(build: Callable[[], TcmrForSentimentAnalysis] = started, **options: Any) -> TcmrForSentimentAnalysis:
        return context.train_stage(
            "main", TcmrForSentimentAnalysis, build, final=True, return_complete=True, **teachers, **options
        )

    if config.is_oracle:

        def with_classifier() -> TcmrForSentimentAnalysis:
            model = started()
            model.polarity_classifier.load_state_dict(classifier.state_dict())
            return model

        return main(with_classifier, trainer_class=TcmrTrainer, objective="other")
    if config.optimization == "aos":
        return main(trainer_class=AlternatingTcmrTrainer, objective="other")
    if config.optimization == "end2end":
        return main(trainer_class=TcmrTrainer, objective="all")
    if config.optimization == "confnet_first":

        def confidence_only() -> TcmrForSentimentAnalysis:
            model = started().requires_grad_(False)
            for parameter in model.confidence_parameters():
                parameter.requires_grad_(True)
            return model

        first = context.train_stage(
            "confidence",
            TcmrForSentimentAnalysis,
            confidence_only,
            trainer_class=TcmrTrainer,
            objective="confidence",
            **teachers,
        )

        def without_confidence() -> TcmrForSentimentAnalysis:
            first.requires_grad_(True)
            for parameter in first.confidence_parameters():
                parameter.requires_grad_(False)
            return first

        return main(without_confidence, trainer_class=TcmrTrainer, objective="other")

    rest = main(trainer_class=TcmrTrainer, objective="other", oracle=True)

    def confidence_last() -> TcmrForSentimentAnalysis:
        for name, parameter in rest.named_parameters():
            parameter.requires_grad_(name.startswith("confnet."))
        return rest

    return context.train_stage(
        "confidence",
        TcmrForSentimentAnalysis,
        confidence_last,
        trainer_class=TcmrTrainer,
        objective="confidence",
        **teachers,
    )
