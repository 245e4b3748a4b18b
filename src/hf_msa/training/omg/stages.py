"""Training of OMG-Agent: planner, plans, autoencoders, feature semantics, knowledge base, classifier, then the executor.

Stages (section 3 of the paper gives the equations of the last one; the others are ours):
    planner: LoRA adapter of the language model that plans, where one does and the configuration wants it adapted.
    plans: what the planner is fitted to, and plans of all training and validation rows under every pattern, cached.
    vae: one autoencoder per modality, on complete data; frozen from then on, and so is
    semantics: the feature side of g, which learns to read plans off complete features.
    knowledge_base: latents, plans and observations of the complete training rows.
    classifier: fusion and classifier on complete data.
    main: denoisers, query projection, alignment, fusion and classifier, under the recipe's protocol.
    classifier_after: the classifier on what the finished executor generates, unless the configuration leaves that out.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoConfig

from hf_msa.data.missing import CompleteProtocol, FixedPattern
from hf_msa.errors import MsaError, as_msa_errors, require_package
from hf_msa.evaluation.checkpoints import ANSWERS_FOLDER
from hf_msa.files import write_json
from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_omg import (
    KNOWLEDGE_BASE_FOLDER,
    PLANNER_FILE,
    OmgForSentimentAnalysis,
    Perception,
)
from hf_msa.models.msa_language_model import ADAPTER_FOLDER
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.omg_executor import LatentVae
from hf_msa.models.omg_knowledge_base import KnowledgeBase
from hf_msa.models.omg_plan_store import PlanStore
from hf_msa.models.omg_planner import MllmPlanner, Planner
from hf_msa.training.language_models import check_language_model, fit_verbalizer, lora_arguments
from hf_msa.training.stages import RunContext
from hf_msa.training.text_states import TextStates, compute_text_states
from hf_msa.training.trainer import AdamTrainer

from .entries import Told, knowledge_base_of
from .fit_planner import fit_centering, fit_light_planner
from .plans import Available, CompleteObservations, PlannedRows, is_partial, left, patterns

STAGES = ("planner", "plans", "vae", "semantics", "knowledge_base", "classifier", "main", "classifier_after")
FINAL_STAGE = "main"
RATE_FREE_STAGES = ("planner", "plans", "vae", "semantics", "knowledge_base", "classifier")

_ROWS_AT_ONCE = 64


class OmgTrainer(AdamTrainer):
    """Trains a part of the system by one of its objectives; plans and states of the frozen text encoder come from caches.

    Args:
        objective: See `OmgForSentimentAnalysis.forward`; None trains the classifier.
        planned: By split, plans of the rows; empty where the objective needs none.
        text_states: By split, states of the complete texts.
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
        self._objective = objective
        self._planned = planned
        self._text_states = text_states
        self._own_entries: Tensor | None = None
        base = self.model.knowledge_base
        if base is not None:
            self._own_entries = base.rows_of(self.train_rows.ids)

    def model_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """Objective, plans, states of the texts, and in training the samples' own entries, which are not retrieved."""
        given: dict[str, Any] = {}
        # Without a refit the classifier that is learned here is the one that users get: it is validated as they use it.
        if training or self._objective != "generate" or self.model.config.refit_classifier:
            given["objective"] = self._objective
        split = "train" if training else "validation"
        rows, indices = inputs["sample_index"], inputs["sample_index"].tolist()
        states = self._text_states[split](rows, inputs["input_ids"].shape[1])
        available = self.model.available(inputs)
        partial = is_partial(inputs, available)
        if not partial:
            given["text_states"] = states
        if self._planned:
            if partial:
                source = self.train_rows if training else self.eval_rows
                members = [source[index] for index in indices]
                _, vectors = self.model.told(inputs, members, self.train_collator.processor)
            else:
                vectors = self._planned[split](indices, left(available))
            given |= {name: value.to(rows.device) for name, value in vectors.items()}
        if training and self._own_entries is not None:
            given["own_entries"] = self._own_entries.to(rows.device)[rows]
        return given


def run(context: RunContext) -> MsaPreTrainedModel:
    """Train all stages."""
    config = cast(OmgConfig, context.config)
    check_packages(config)
    if config.planner == "mllm" and config.condition_dim is None:
        config.condition_dim = int(
            AutoConfig.from_pretrained(cast(str, config.planner_model)).get_text_config().hidden_size
        )
    model = context.new_model(OmgForSentimentAnalysis)
    model.eval()
    model.media = None if context.media is None else context.media.load
    # Of the knowledge base one copy will do: that of its stage, until the run's own checkpoint is written.
    model.saves_knowledge_base = False
    # Kept for all seeds, ablations and training rates in one folder of runs.
    model.answers_folder = context.runs_folder / ANSWERS_FOLDER
    prepare_texts(context, model)
    make_planner(context, model)
    planned = {split: PlannedRows(model, context.rows[split], context.processor) for split in ("train", "validation")}
    context.made_stage("plans", lambda folder: make_plans(context, model, planned))
    states = {split: TextStates(_states_file(context, split)) for split in planned}

    def train(stage: str, objective: str | None, parts: Sequence[str], plans: bool = True, **options: Any) -> None:
        """Train some parts of the model in place."""
        model.train_only(*parts)
        trained = context.train_stage(
            stage,
            OmgForSentimentAnalysis,
            lambda: model,
            trainer_class=OmgTrainer,
            objective=objective,
            planned=planned if plans else {},
            text_states=states,
            **options,
        )
        if trained is not model:
            model.load_state_dict(trained.state_dict())
        model.eval()

    train("vae", "autoencode", ["executors.*.vae"], plans=False, complete=True)
    if not (context.stage_folder("semantics") / "stage.json").is_file():
        fit_scales(context, model)
    train("semantics", "semantics", ["executors.*.semantics"], complete=True)
    folder = context.stage_folder("knowledge_base")
    context.made_stage("knowledge_base", lambda place: make_knowledge_base(context, model, planned["train"], place))
    model.knowledge_base = KnowledgeBase.load(folder / KNOWLEDGE_BASE_FOLDER)
    train("classifier", None, ["fusion"], complete=True)
    parts = ["executors.*.denoiser", "executors.*.alignment"]
    parts += ["retriever"] if model.config.retrieval_aggregation != "none" else []
    parts += ["fusion"] if model.config.task_loss_weight else []
    train("main", "generate", parts, final=True, return_complete=True, validate_complete=model.config.refit_classifier)
    if model.config.refit_classifier:
        train("classifier_after", None, ["fusion"])
    model.saves_knowledge_base = True
    return model


def check_packages(config: OmgConfig) -> None:
    """Check, before anything is trained, that everything is there that later stages need.

    Raises:
        MsaError: If a package is not installed, or the language model is not to be had.
    """
    require_package("diffusers", "omg")
    if config.index_factory != "Flat":
        require_package("faiss", "kb")
    check_language_model(config)


# --- Texts ---


def _states_file(context: RunContext, split: str) -> Path:
    return context.stage_folder("plans") / f"text_states_{split}.safetensors"


def prepare_texts(context: RunContext, model: OmgForSentimentAnalysis) -> None:
    """Compute the states of all complete texts once, and how they and the lengths of all modalities are distributed."""
    for split in ("train", "validation"):
        file = _states_file(context, split)
        if PartialState().is_main_process and not file.is_file():
            compute_text_states(model, context.rows[split], context.complete_collator(split), file)
    PartialState().wait_for_everyone()
    total = torch.zeros(2, len(model.text_mean), dtype=torch.float64)
    count, rows = 0, context.rows["train"]
    states = TextStates(_states_file(context, "train"))
    for part in torch.arange(len(rows)).split(_ROWS_AT_ONCE):
        lengths = torch.from_numpy(rows.lengths["text"])[part]
        flat = states(part, int(lengths.max()))[torch.arange(int(lengths.max())) < lengths[:, None]].double()
        total += torch.stack([flat.sum(0), flat.square().sum(0)])
        count += len(flat)
    mean = total[0] / count
    std = (total[1] / count - mean.square()).clamp(min=0).sqrt()
    model.text_mean.copy_(mean)
    # A channel that never differs says nothing; it must not be blown up.
    model.text_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))
    model.config.typical_lengths = {
        name: int(np.median(rows.lengths[name])) for name in MODALITIES if name in model.config.modalities
    }


# --- Planner and plans ---


def make_planner(context: RunContext, model: OmgForSentimentAnalysis) -> None:
    """Give the model its planner: fitted to the training split, and adapted where a language model is to be; or read it.

    Raises:
        MsaError: If the language model is not to be had.
    """
    file = context.stage_folder("plans") / PLANNER_FILE
    with as_msa_errors():
        if model.config.planner == "mllm" and model.config.planner_lora:
            adapt_planner(context, model)
        if PartialState().is_main_process and not file.is_file():
            planner = fit_planner(context, model)
            write_json(file, planner.to_dict())
        PartialState().wait_for_everyone()
        model.planner_values = json.loads(file.read_text(encoding="utf-8"))
        model.set_planner(None)


def fit_planner(context: RunContext, model: OmgForSentimentAnalysis, adapted: bool = True) -> Planner:
    """Fit the planner that the configuration names to the training split; `adapted` as in `load_language_model`."""
    observations = CompleteObservations(model, context.rows["train"], context.processor)
    config, store = model.config, PlanStore(model.answers_folder)
    verbalizer = fit_verbalizer(context) if config.use_verbalizer and len(config.modalities) > 1 else None
    planner: Planner
    if config.planner == "light":
        encode = functools.partial(model.embed_texts, context.processor.tokenizer)
        labels = context.rows["train"].labels.tolist()
        planner = fit_light_planner(observations, labels, encode, config, verbalizer, store)
    else:
        planner = MllmPlanner(model.load_language_model(adapted), config, verbalizer, store=store)
    fit_centering(planner, observations, context.seed)
    return planner


def adapt_planner(context: RunContext, model: OmgForSentimentAnalysis) -> None:
    """Train the language model's adapter on plans of its own with the label's sentiment, or find it where that is done."""
    from .planner_adapter import PlannerTrainingArguments, train_planner_adapter

    folder = context.stage_folder("planner") / ADAPTER_FOLDER

    def learn(_: Path) -> dict[str, Any]:
        rows = context.rows["train"]
        return train_planner_adapter(
            cast(MllmPlanner, fit_planner(context, model, adapted=False)),
            CompleteObservations(model, rows, context.processor),
            rows.labels.tolist(),
            lora_arguments(context, "planner", PlannerTrainingArguments),
            folder,
            label_range=model.config.label_range,
        )

    context.made_stage("planner", learn, every_process=True)
    model.set_planner(None, adapter=folder)


def make_plans(context: RunContext, model: OmgForSentimentAnalysis, planned: dict[str, PlannedRows]) -> dict[str, Any]:
    """Plan for all training and validation rows under every pattern that training and selection may meet."""
    everything = patterns(model.config.modalities)
    found: dict[str, list[str]] = {}
    with as_msa_errors():
        for split, rows in planned.items():
            protocol = context.collator(split).protocol
            if isinstance(protocol, CompleteProtocol):
                wanted = everything[:1]
            elif isinstance(protocol, FixedPattern):
                wanted = [everything[0], tuple(n for n in model.config.modalities if n in protocol.available)]
            else:
                wanted = everything
            rows.fill(wanted, split)
            found[split] = ["+".join(names) for names in wanted]
    return {"planner": model.planner(context.processor).name, "patterns": found}


# --- Autoencoders and knowledge base ---


@torch.no_grad()
def complete_batches(context: RunContext, model: OmgForSentimentAnalysis) -> Iterator[tuple[Tensor, Perception]]:
    """All training rows, complete: their indices and what the model perceives of them."""
    states = TextStates(_states_file(context, "train"))
    collator = context.complete_collator("train")
    rows = context.rows["train"]
    for part in tqdm(torch.arange(len(rows)).split(_ROWS_AT_ONCE), desc="complete rows", leave=False, disable=None):
        batch = collator([rows[int(index)] for index in part])
        yield part, model.perceive(batch, states(part, batch["input_ids"].shape[1]))


@torch.no_grad()
def fit_scales(context: RunContext, model: OmgForSentimentAnalysis) -> None:
    """Scale the latents of each modality to a standard deviation of one on the training split."""
    found: dict[str, list[Tensor]] = {name: [] for name in model.config.modalities}
    for _, perception in complete_batches(context, model):
        for name, parts in found.items():
            vae, mask = model.executors_by_name[name].vae, perception.masks[name]
            means = vae.encode(perception.values[name], mask)[0]
            parts.append(means[vae.latent_mask(mask)])
    for name, parts in found.items():
        fit_scale(model.executors_by_name[name].vae, torch.cat(parts))


@torch.no_grad()
def fit_scale(vae: LatentVae, means: Tensor) -> None:
    """Set center and scale of latents: each channel's mean, and one standard deviation around them.

    One deviation for all channels, so that channels the autoencoder does not use stay small. Without the center most of what
    diffusion has to generate would be the same for every sample.

    Args:
        vae: The autoencoder.
        means (`torch.FloatTensor` of shape `(latents, latent_dim)`): Unscaled real latents of the training split.

    Raises:
        MsaError: If they do not vary.
    """
    center = means.mean(dim=0)
    scale = (means - center).square().mean().sqrt()
    if not scale > 0:
        raise MsaError("The latents of the training split do not vary; train the autoencoders for longer.")
    vae.latent_mean.copy_(center)
    vae.latent_std.copy_(scale)


def make_knowledge_base(
    context: RunContext, model: OmgForSentimentAnalysis, planned: PlannedRows, folder: Path
) -> dict[str, Any]:
    """Encode those training rows that have all modalities, and write the knowledge base into `folder`.

    Raises:
        MsaError: If there is no such row.
    """
    everything = patterns(model.config.modalities)[0]

    def batches() -> Iterator[tuple[list[str], Perception, Told]]:
        for part, perception in complete_batches(context, model):
            indices = part.tolist()
            ids = [context.rows["train"].ids[index] for index in indices]
            yield ids, perception, functools.partial(_planned_places, planned, indices, everything)

    base = knowledge_base_of(model, batches())
    base.save(folder / KNOWLEDGE_BASE_FOLDER)
    return {"entries": len(base)}


def _planned_places(
    planned: PlannedRows, indices: Sequence[int], pattern: Available, places: Sequence[int]
) -> dict[str, Tensor]:
    return planned([indices[place] for place in places], [pattern] * len(places))
