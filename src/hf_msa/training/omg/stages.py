"""Training of OMG-Agent: planner, plans, autoencoders, knowledge base, then the executor and the classifier.

Stages (section 3 of the paper gives the equations of the last but one; the others are ours):
    planner: LoRA adapter of the language model that plans, where one does and the configuration wants it adapted.
    plans: what the planner is fitted to, and plans of all training and validation rows under every pattern, cached.
    vae: one autoencoder per modality, and the feature side of g, which learns to read plans off features; on complete data,
        and frozen from then on.
    knowledge_base: latents, plans and observations of the complete training rows.
    classifier: fusion and classifier on complete data; only where the configuration leaves classifier_after out.
    main: denoisers, query projection, alignment, fusion and classifier, under the recipe's protocol.
    classifier_after: fusion and classifier on what the finished executor generates.

All that comes before the classifier is shared by runs that are made of the same things, see `Dependencies`: ablations of
what comes later take it from each other, and states of texts, which depend on no seed, are computed once for all.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import TrainerState

from hf_msa.data.missing import CompleteProtocol, FixedPattern
from hf_msa.errors import MsaError, as_msa_errors, require_package
from hf_msa.evaluation.checkpoints import ANSWERS_FOLDER
from hf_msa.evaluation.sweep import masked_batches
from hf_msa.files import write_json
from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_omg import KNOWLEDGE_BASE_FOLDER, PLANNER_FILE, OmgForSentimentAnalysis
from hf_msa.models.msa_answer_store import AnswerStore
from hf_msa.models.msa_language_model import ADAPTER_FOLDER
from hf_msa.models.msa_mllm import LocalMllm, Mllm, MllmRequest, adapter_digest
from hf_msa.models.omg_knowledge_base import KnowledgeBase
from hf_msa.models.omg_planner import MllmPlanner, Planner
from hf_msa.training.language_models import (
    check_language_model,
    fit_verbalizer,
    lora_arguments,
    warn_of_unreadable,
)
from hf_msa.training.stages import RunContext, weights_digest
from hf_msa.training.text_states import TextStates, compute_text_states
from hf_msa.training.trainer import AdamTrainer

from .entries import encode_rows
from .lengths import fit_lengths
from .planners import PlannerTrainingArguments, fit_centering, fit_light_planner, train_planner_adapter
from .plans import CompleteObservations, PlannedRows, is_partial, observed_patterns, part_of, patterns

STAGES = ("planner", "plans", "vae", "knowledge_base", "classifier", "main", "classifier_after")
FINAL_STAGE = "main"
LORA_STAGES = ("planner",)
RATE_FREE_STAGES = STAGES[:5]
SHARED_STAGES = STAGES[:4]

LATER_FIELDS = (
    *("plan_source", "plan_tokens", "query_dim", "top_k", "retrieval_temperature", "retrieval_query"),
    *("retrieval_aggregation", "index_factory", "index_nprobe", "index_ef_search", "denoiser_dim", "denoiser_layers"),
    *(
        "denoiser_heads",
        "denoiser_feedforward_dim",
        "injection",
        "num_train_timesteps",
        "prediction_type",
        "scheduler",
    ),
    *("num_inference_steps", "num_samples", "fusion_dim", "dropout", "classifier_input", "classifier_plan"),
    *("plan_loss_weight", "evidence_loss_weight", "task_loss_weight", "alignment_loss_weight", "refit_classifier"),
    *("aux_weight", "generation", "prediction", "missing_length", "missing_length_fits"),
)
"""Fields of the configuration that no shared stage depends on; what they do to initial weights is seen in the weights."""
AUTOENCODERS_FILE = "autoencoders.safetensors"
_TEXT_STATES = "text_states"


def stages_of(config: OmgConfig) -> tuple[str, ...]:
    """The stages of a run: an adapter only for a language model that gets one, and the classifier before `main` or after."""
    absent = {
        "classifier" if config.refit_classifier else "classifier_after",
        "" if _is_adapted(config) else "planner",
    }
    return tuple(stage for stage in STAGES if stage not in absent)


class OmgTrainer(AdamTrainer):
    """Trains a part of the system by one of its objectives; plans and states of the frozen text encoder come from caches.

    Args:
        objective: See `OmgForSentimentAnalysis.compute`; None trains the classifier.
        planned, text_states: By split, plans of the rows and states of the complete texts.
        **kwargs: See `MsaTrainer`.
    """

    model: OmgForSentimentAnalysis

    def __init__(
        self,
        *args: Any,
        objective: str | None,
        planned: dict[str, PlannedRows],
        text_states: dict[str, TextStates],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._objective, self._planned, self._text_states = objective, planned, text_states
        base = self.model.knowledge_base
        self._own_entries = None if base is None else base.rows_of(self.train_rows.ids)

    def model_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """Objective, plans, states of the texts, and in training the samples' own entries, which are not retrieved."""
        given: dict[str, Any] = {}
        # Without a refit the classifier that is learned here is the one that users get: it is validated as they use it.
        if training or self._objective != "generate" or self.model.config.refit_classifier:
            given["objective"] = self._objective
        split, source = ("train", self.train_rows) if training else ("validation", self.eval_rows)
        rows, indices = inputs["sample_index"], inputs["sample_index"].tolist()
        available = self.model.available(inputs)
        if is_partial(inputs, available):
            members = [source[index] for index in indices]
            seen = self.model.observations(inputs, members, self.train_collator.processor)
            vectors = self._planned[split].vectors(indices, seen)
        else:
            given["text_states"] = self._text_states[split](rows, inputs["input_ids"].shape[1])
            vectors = self._planned[split](indices, observed_patterns(available))
        given |= {name: value.to(rows.device) for name, value in vectors.items()}
        if training and self._own_entries is not None:
            given["own_entries"] = self._own_entries.to(rows.device)[rows]
        return given

    def fit(self) -> TrainerState:
        """Train; the latents of autoencoders that were trained are then scaled."""
        state = super().fit()
        if self._objective == "pretrain":
            fit_scales(self.model.eval(), self.train_collator.processor, self.train_rows)
        return state

    def save_products(self, folder: Path) -> None:
        """Write what other runs need of the autoencoders' stage."""
        if self._objective == "pretrain":
            save_file(autoencoders(self.model), folder / AUTOENCODERS_FILE)


def autoencoders(model: OmgForSentimentAnalysis) -> dict[str, Tensor]:
    """Weights of the parts that the stage `vae` trains, by their names in the model."""
    names = [f"executors.{name}.{part}." for name in model.executors for part in ("vae", "semantics")]
    state = model.state_dict()
    return {name: state[name].detach().cpu().contiguous() for name in state if name.startswith(tuple(names))}


def _is_adapted(config: OmgConfig) -> bool:
    """Whether the planner gets an adapter."""
    return config.planner == "mllm" and config.planner_lora


class Dependencies:
    """What the shared stages of a run depend on, for `SharedStages`.

    Args:
        context: The run.
        model: As it was initialised.
    """

    def __init__(self, context: RunContext, model: OmgForSentimentAnalysis) -> None:
        self._context, self._model = context, model
        self._all = context.dependencies(model.config, LATER_FIELDS)

    @property
    def texts(self) -> dict[str, Any]:
        """Of the states of texts."""
        config, recipe = self._model.config, self._context.recipe
        shape = [config.text_max_length, config.mask_padding, recipe.pad_to_fixed]
        return {"made of": self._context.fingerprints, "texts": shape, "device": self._all["device"]}

    @property
    def adapter(self) -> dict[str, Any]:
        """Of the adapter of a language model."""
        arguments = lora_arguments(self._context, "planner", PlannerTrainingArguments)
        return {**self._all, "arguments": self._context.arguments_to_share(arguments)}

    @property
    def planner(self) -> dict[str, Any]:
        """Of the planner, which may have an adapter."""
        adapter = self._context.stage_folder("planner") / ADAPTER_FOLDER
        return {**self._all, "adapter": adapter_digest(adapter) if _is_adapted(self._model.config) else None}

    @property
    def autoencoders(self) -> dict[str, Any]:
        """Of the autoencoders and the feature side of g, of their initial weights as well."""
        arguments = self._context.arguments("vae", final=False)
        return {**self._with_planner(), "arguments": self._context.arguments_to_share(arguments)}

    @property
    def knowledge_base(self) -> dict[str, Any]:
        """Of the knowledge base, of the autoencoders as they were trained."""
        return self._with_planner()

    def _with_planner(self) -> dict[str, Any]:
        return {
            **self._all,
            "weights": weights_digest(autoencoders(self._model)),
            "planner": self._model.planner_values,
        }


def run(context: RunContext) -> MsaPreTrainedModel:
    """Train all stages.

    Raises:
        MsaError: If something is absent that a later stage needs, before anything is trained.
    """
    config = cast(OmgConfig, context.config)
    if config.prediction != "classifier":
        raise MsaError(
            f"model.prediction is {config.prediction!r}, which is for hf-msa evaluate --set prediction={config.prediction}; "
            "train with the classifier."
        )
    require_package("diffusers", "omg")
    if config.index_factory != "Flat":
        require_package("faiss", "kb")
    if not (context.stage_folder("plans") / PLANNER_FILE).is_file():
        lora = "planner" if config.planner_lora else None
        check_language_model(context, OmgForSentimentAnalysis, lambda *given: first_question(context, *given), lora)
    if config.planner == "mllm" and config.planner_kind == "local" and config.condition_dim is None:
        with as_msa_errors():
            config.condition_dim = LocalMllm.from_pretrained(cast(str, config.planner_model)).width
    if config.missing_length == "observed":
        config.missing_length_fits = fit_lengths(context.rows["train"], config)
    model = context.new_model(OmgForSentimentAnalysis)
    model.eval()
    model.media = None if context.media is None else context.media.load
    # Of the knowledge base one copy will do: that of its stage, until the run's own checkpoint is written.
    model.saves_knowledge_base = False
    # Kept for all seeds, ablations and training rates in one folder of runs.
    model.answers_folder = context.runs_folder / ANSWERS_FOLDER
    share_answers(context, model)
    dependencies = Dependencies(context, model)
    states = prepare_texts(context, model, dependencies)
    make_planner(context, model, dependencies)
    planners = {"train": cross_fitted(context, model), "validation": ()}
    planned = {split: PlannedRows(model, context.rows[split], context.processor, planners[split]) for split in states}
    context.made_stage("plans", lambda folder: make_plans(context, model, planned))

    def train(stage: str, objective: str | None, parts: Sequence[nn.Module], **options: Any) -> None:
        """Train some parts of the model in place."""
        model.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        trained = context.train_stage(
            stage,
            OmgForSentimentAnalysis,
            lambda: model,
            trainer_class=OmgTrainer,
            objective=objective,
            planned=planned,
            text_states=states,
            **options,
        )
        if trained is not model:
            model.load_state_dict(trained.state_dict())
        model.eval()

    executors = model.executors_by_name.values()
    depends_on = dependencies.autoencoders
    if context.take_stage("vae", depends_on):
        model.load_state_dict(load_file(context.stage_folder("vae") / AUTOENCODERS_FILE), strict=False)
    else:
        train("vae", "pretrain", [part for one in executors for part in (one.vae, one.semantics)], complete=True)
        context.give_stage("vae", depends_on, [AUTOENCODERS_FILE])
    folder = context.stage_folder("knowledge_base") / KNOWLEDGE_BASE_FOLDER

    def encode(_: Path) -> dict[str, Any]:
        base = encode_rows(model, context.processor, context.rows["train"])
        base.save(folder)
        return {"entries": len(base)}

    context.made_stage("knowledge_base", encode, depends_on=dependencies.knowledge_base)
    model.knowledge_base = KnowledgeBase.load(folder)
    if not config.refit_classifier:
        train("classifier", None, [model.fusion], complete=True)
    parts: list[nn.Module] = []
    if config.generation:
        parts += [part for one in executors for part in (one.denoiser, one.alignment)]
        parts += [model.retriever] if config.retrieval_aggregation != "none" else []
    parts += [model.fusion] if config.task_loss_weight else []
    objective = "generate" if config.generation else None
    train("main", objective, parts, final=True, return_complete=True, validate_complete=config.refit_classifier)
    if config.refit_classifier:
        train("classifier_after", None, [model.fusion])
    model.saves_knowledge_base = True
    return model


def share_answers(context: RunContext, model: OmgForSentimentAnalysis) -> None:
    """Take what other runs' planners were asked, where their stages are to be taken."""
    if context.stages_from is not None and PartialState().is_main_process:
        AnswerStore(model.answers_folder).take(context.stages_from / ANSWERS_FOLDER)
    PartialState().wait_for_everyone()


def prepare_texts(
    context: RunContext, model: OmgForSentimentAnalysis, dependencies: Dependencies
) -> dict[str, TextStates]:
    """Compute the states of all complete texts, by split, and how they are distributed."""
    folder = context.stage_folder("plans")
    files = {split: folder / f"{_TEXT_STATES}_{split}.safetensors" for split in ("train", "validation")}
    if PartialState().is_main_process and not all(file.is_file() for file in files.values()):
        depends_on = dependencies.texts
        if context.shared.take(_TEXT_STATES, depends_on, folder) is None:
            for split, file in files.items():
                compute_text_states(model, context.rows[split], context.complete_collator(split), file)
            context.shared.give(_TEXT_STATES, depends_on, folder, [file.name for file in files.values()], {})
    PartialState().wait_for_everyone()
    states = {split: TextStates(file) for split, file in files.items()}
    mean, std = states["train"].statistics()
    model.text_mean.copy_(mean)
    # A channel that never differs says nothing; it must not be blown up.
    model.text_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))
    return states


def make_planner(context: RunContext, model: OmgForSentimentAnalysis, dependencies: Dependencies) -> None:
    """Give the model its planner: fitted to the training split, and adapted where a language model is to be; or read it."""
    file = context.stage_folder("plans") / PLANNER_FILE
    with as_msa_errors():
        if _is_adapted(model.config):
            adapt_planner(context, model, dependencies)
        if PartialState().is_main_process and not file.is_file():
            depends_on = dependencies.planner
            if context.shared.take("plans", depends_on, file.parent) is None:
                write_json(file, fit_planner(context, model).to_dict())
                context.shared.give("plans", depends_on, file.parent, [file.name], {})
        PartialState().wait_for_everyone()
        model.planner_values = json.loads(file.read_text(encoding="utf-8"))


def first_question(context: RunContext, model: OmgForSentimentAnalysis, mllm: Mllm) -> MllmRequest:
    """What a language model is asked about the first training row."""
    verbalizer = fit_verbalizer(context) if model.config.use_verbalizer and len(model.config.modalities) > 1 else None
    observation = CompleteObservations(model, context.rows["train"], context.processor)[0]
    return MllmPlanner(mllm, model.config, verbalizer).request(observation)


def fit_planner(context: RunContext, model: OmgForSentimentAnalysis) -> Planner:
    """Fit the planner that the configuration names to the training split."""
    planner = new_planner(context, model)
    fit_centering(planner, CompleteObservations(model, context.rows["train"], context.processor), context.seed)
    return planner


def new_planner(context: RunContext, model: OmgForSentimentAnalysis, adapted: bool = True) -> Planner:
    """Make the planner, its means to be fitted; `adapted` as in `load_language_model`."""
    observations = CompleteObservations(model, context.rows["train"], context.processor)
    config, store = model.config, AnswerStore(model.answers_folder)
    verbalizer = fit_verbalizer(context) if config.use_verbalizer and len(config.modalities) > 1 else None
    encode = functools.partial(model.embed_texts, context.processor.tokenizer)
    if config.planner == "light":
        labels = context.rows["train"].labels.tolist()
        return fit_light_planner(observations, labels, encode, config, verbalizer, store)
    return MllmPlanner(model.load_language_model(adapted), config, verbalizer, store=store, encode=encode)


def cross_fitted(context: RunContext, model: OmgForSentimentAnalysis) -> Sequence[Planner]:
    """Light planners for parts of the training split, each fitted to all others; none where there is one part."""
    config, rows = model.config, context.rows["train"]
    if config.planner != "light" or config.planner_folds == 1:
        return ()
    whole, observations = model.planner(context.processor), list(CompleteObservations(model, rows, context.processor))
    encode = functools.partial(model.embed_texts, context.processor.tokenizer)
    found = []
    for part in range(config.planner_folds):
        others = [index for index in range(len(rows)) if part_of(index, len(rows), config.planner_folds) != part]
        planner = fit_light_planner(
            [observations[index] for index in others],
            rows.labels[others].tolist(),
            encode,
            config,
            whole.verbalizer,
            whole.store,
        )
        planner.centering = whole.centering
        found.append(planner)
    return found


def adapt_planner(context: RunContext, model: OmgForSentimentAnalysis, dependencies: Dependencies) -> None:
    """Train the language model's adapter on plans of its own with the label's sentiment, or find it where that is done."""
    folder = context.stage_folder("planner") / ADAPTER_FOLDER

    def learn(_: Path) -> dict[str, Any]:
        (clips, labels), validation = (
            (CompleteObservations(model, rows, context.processor), rows.labels.tolist())
            for rows in (context.rows["train"], context.rows["validation"])
        )
        return train_planner_adapter(
            cast(MllmPlanner, new_planner(context, model, adapted=False)),
            clips,
            labels,
            lora_arguments(context, "planner", PlannerTrainingArguments),
            folder,
            validation,
            context.rows["train"].lengths.get("text"),
        )

    context.made_stage("planner", learn, every_process=True, depends_on=dependencies.adapter)
    model.set_adapter_folder(folder)


def make_plans(context: RunContext, model: OmgForSentimentAnalysis, planned: dict[str, PlannedRows]) -> dict[str, Any]:
    """Plan for all training and validation rows under every pattern that training and selection may meet."""
    modalities = model.config.modalities
    found: dict[str, list[str]] = {}
    for split, rows in planned.items():
        protocol, wanted = context.collator(split).protocol, patterns(modalities)
        if isinstance(protocol, CompleteProtocol):
            wanted = wanted[:1]
        elif isinstance(protocol, FixedPattern):
            wanted = [wanted[0], tuple(name for name in modalities if name in protocol.available)]
        with as_msa_errors():
            rows.fill(wanted, split)
        found[split] = ["+".join(names) for names in wanted]
    fallbacks, count = sum(rows.fallbacks for rows in planned.values()), sum(map(len, planned.values()))
    warn_of_unreadable("planner", fallbacks, count)
    return {"planner": model.planner(context.processor).name, "patterns": found, "fallbacks": fallbacks}


@torch.no_grad()
def fit_scales(model: OmgForSentimentAnalysis, processor: Any, rows: Any) -> None:
    """Set center and scale of the latents of each modality by complete training rows.

    The center is each channel's mean, without which most of what diffusion has to generate would be the same for every
    sample; the scale is one deviation for all channels, so that channels the autoencoder does not use stay small.

    Raises:
        MsaError: If the latents of a modality do not vary.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in model.config.modalities}
    for batch in masked_batches(model, processor, rows, [CompleteProtocol()], "latents", batch_size=64):
        perception = model.perceive(batch.complete)
        for name, parts in found.items():
            vae, mask = model.executors_by_name[name].vae, perception.masks[name]
            parts.append(vae.encode(perception.values[name], mask)[0][vae.latent_mask(mask)])
    for name, parts in found.items():
        vae, latents = model.executors_by_name[name].vae, torch.cat(parts)
        vae.latent_mean.copy_(latents.mean(dim=0))
        vae.latent_std.copy_((latents - vae.latent_mean).square().mean().sqrt())
        if not vae.latent_std > 0:
            raise MsaError(
                f"The latents of {name} in the training split do not vary; train the autoencoders for longer."
            )
