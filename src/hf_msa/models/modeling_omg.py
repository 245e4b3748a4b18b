"""OMG-Agent: a planner says what a missing modality expresses, a retriever finds evidence, an executor generates it.

Paper: "OMG-Agent: Toward Robust Missing Modality Generation with Decoupled Coarse-to-Fine Agentic Workflows". The parts are
in `omg_planner`, `omg_retriever` and `omg_executor`; here they become one model that predicts. `forward` takes plans as
vectors; `predict_rows` and `generate_missing` have them made from the rows.
"""

import dataclasses
import functools
import hashlib
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_omg import OmgConfig
from .modeling_msa import Batch, SideFile, build_text_encoder, masked_mean, read_side_file, sound_side_file
from .msa_answer_store import AnswerStore
from .msa_inputs import MsaInputs
from .msa_language_model import AsksLanguageModel
from .msa_mllm import Mllm
from .msa_outputs import MsaOutput
from .msa_verbalizer import MsaVerbalizer
from .omg_batches import Conditioning, GeneratedBatch, Perception, average_positions
from .omg_executor import LatentVae, ModalityExecutor, build_scheduler, draw_noise
from .omg_knowledge_base import DESCRIPTION_FILE, NO_ENTRY, KnowledgeBase
from .omg_light_planner import LightPlanner
from .omg_observation import Observation, observe_rows
from .omg_plan import score_label
from .omg_planner import MllmPlanner, PlanChoice, Planner
from .omg_retriever import EvidenceRetriever

KNOWLEDGE_BASE_FOLDER = "knowledge_base"
PLANNER_FILE = "planner.json"
_TEXTS_AT_ONCE = 64

Objective = Literal["pretrain", "generate"]


@dataclass
class OmgOutput(MsaOutput):
    """Output of `OmgForSentimentAnalysis`; NaN where a sample misses nothing, so that nothing was retrieved or generated.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The scores of the classes, weighted by their
            probabilities.
        class_logits (`torch.FloatTensor` of shape `(batch, classes)`, *optional*): Of the label family's classes.
        alignment_cost, path_cost (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): C_evi (eq. 9); and C_path of
            eq. 3, which the paper does not define: the mean squared change of the latents in a step.
        planned_score, fallback_plan (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The plan's sentiment from -3 to
            3, and 1 where no candidate kept to the schema, or a language model gave none; only of `predict_rows`.
        planner_calls, planner_prompt_tokens, planner_tokens, remembered (`torch.FloatTensor` of shape `(batch, 1)`,
            *optional*): Questions to a language model that plans, their tokens (NaN where it does not say), the tokens that
            it wrote in all candidates, and questions that were answered before.
        seconds (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Where a language model plans, time spent on the
            sample, its share of what went through the models together; loading the language model is not in it. Remembered
            plans count with the time that they took, remembered vectors of them with none.
    """

    class_logits: torch.Tensor | None = None
    alignment_cost: torch.Tensor | None = None
    path_cost: torch.Tensor | None = None
    planned_score: torch.Tensor | None = None
    fallback_plan: torch.Tensor | None = None
    planner_calls: torch.Tensor | None = None
    planner_prompt_tokens: torch.Tensor | None = None
    planner_tokens: torch.Tensor | None = None
    remembered: torch.Tensor | None = None
    seconds: torch.Tensor | None = None


class OmgFusion(nn.Module):
    """Fusion and f_phi of eq. 17: projections of the observation and of each modality's mean latent, and a classifier.

    The paper leaves both open (concatenation or pooling). Where the configuration says so, plan and the planner's score are
    projected and read as well.
    """

    def __init__(self, config: OmgConfig) -> None:
        super().__init__()
        dim = config.fusion_dim
        self.observation = nn.Linear(config.observation_width, dim)
        self.plan = nn.Linear(config.plan_width + 1, dim) if config.classifier_plan else None
        self.latents = nn.ModuleDict({name: nn.Linear(config.latent_dim, dim) for name in config.modalities})
        self.hidden = nn.Linear(dim * (1 + (self.plan is not None) + len(config.modalities)), dim)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(dim, len(config.class_names))

    def forward(self, conditioning: Conditioning, pooled: Mapping[str, Tensor]) -> Tensor:
        """Class logits `(batch, classes)` of u_X, c_S where it is read, and the mean latents `(batch, latent_dim)`."""
        parts = [self.observation(conditioning.observation)]
        if self.plan is not None:
            parts.append(self.plan(torch.cat([conditioning.plan, conditioning.score], dim=-1)))
        parts += [layer(pooled[name]) for name, layer in self.latents.items()]
        logits: Tensor = self.classifier(self.dropout(F.relu(self.hidden(torch.cat(parts, dim=-1)))))
        return logits


class OmgForSentimentAnalysis(AsksLanguageModel):
    """The executor's weights, retriever, and classifier; planner and knowledge base lie beside them.

    The text encoder is frozen: its states are the features of text that are generated where text is missing. The planner and
    the knowledge base are loaded when they are first needed, or given (`set_planner`, `knowledge_base`).

    Attributes:
        planner_values: What the planner is made of, as `Planner.to_dict` gives it; None for a model without one.
        saves_knowledge_base: Whether `save_pretrained` writes the knowledge base, too.

    Example:
        ```python
        from hf_msa import OmgConfig, OmgForSentimentAnalysis

        config = OmgConfig(audio_dim=5, vision_dim=20)  # widths are those of the data
        model = OmgForSentimentAnalysis.from_text_pretrained("data/sample/text_model", config)
        ```
    """

    config: OmgConfig
    SIDE_FILES = (
        *AsksLanguageModel.SIDE_FILES,
        SideFile(PLANNER_FILE, names_models=True),
        SideFile(f"{KNOWLEDGE_BASE_FOLDER}/*"),
    )
    COST_COLUMNS = {
        "calls": "planner_calls",
        "prompt_tokens": "planner_prompt_tokens",
        "tokens": "planner_tokens",
        "seconds": "seconds",
        "remembered": "remembered",
        "unreadable": "fallback_plan",
    }
    text_mean: Tensor
    text_std: Tensor

    def __init__(self, config: OmgConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        self.text_encoder.requires_grad_(False)
        widths = {name: getattr(config, f"{name}_dim") for name in config.modalities[1:]}
        widths = {"text": config.text_config.hidden_size, **widths}
        self.register_buffer("text_mean", torch.zeros(widths["text"]))
        self.register_buffer("text_std", torch.ones(widths["text"]))
        self.executors = nn.ModuleDict({name: ModalityExecutor(width, config) for name, width in widths.items()})
        self.retriever = EvidenceRetriever(config)
        self.fusion = OmgFusion(config)
        self._planner: Planner | None = None
        self.planner_values: dict[str, Any] | None = None
        self.saves_knowledge_base = True
        self._knowledge_base: KnowledgeBase | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.zeros_(self.text_mean)
            nn.init.ones_(self.text_std)

    def train(self, mode: bool = True) -> "OmgForSentimentAnalysis":
        """Set the mode; the text encoder stays without dropout, as its states are features."""
        super().train(mode)
        self.text_encoder.eval()
        return self

    @property
    def executors_by_name(self) -> dict[str, ModalityExecutor]:
        """The executor of each modality."""
        return {name: cast(ModalityExecutor, executor) for name, executor in self.executors.items()}

    @property
    def output_columns(self) -> dict[str, tuple[str, ...]]:
        """The classes of the class logits."""
        return {"class_logits": self.config.class_names}

    def label_classes(self, labels: Tensor) -> Tensor:
        """The class of each label, an index into the classes of the label family; both of any shape."""
        return self.config.family.class_index(labels)

    # --- What lies beside the weights ---

    def load_side_files(self) -> None:
        """Read what the planner is made of; knowledge base and adapter are not fetched before they are needed."""
        super().load_side_files()
        file = self.stored_file(PLANNER_FILE)
        if file is not None:
            self.planner_values = read_side_file(file)

    def save_side_files(self, folder: Path) -> None:
        """Write what the planner was fitted to, its adapter, and the knowledge base."""
        super().save_side_files(folder)
        values = self.planner_values if self._planner is None else self._planner.to_dict()
        if values is not None:
            (folder / PLANNER_FILE).write_text(
                json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
            )
        if self.saves_knowledge_base and self.knowledge_base is not None:
            self.knowledge_base.save(folder / KNOWLEDGE_BASE_FOLDER)

    def set_planner(self, planner: Planner | None) -> None:
        """Plan with a planner that was fitted elsewhere; None goes back to that of `planner_values`."""
        self._planner = planner

    def planner(self, processor: Any) -> Planner:
        """The planner; made when it is first needed, with the processor's tokenizer where the text encoder reads for it.

        Raises:
            ValueError: If the checkpoint has none, or one of another kind than the configuration names, or its language
                model is not there.
            ImportError: If a package that it needs is not installed.
        """
        if self._planner is None:
            if self.planner_values is None:
                raise ValueError(
                    f"This model has no planner: there is no {PLANNER_FILE} beside its weights; train it, or load a "
                    "checkpoint that was trained."
                )
            kind = self.planner_values.get("kind")
            if kind != self.config.planner:
                raise ValueError(
                    f"The planner in {PLANNER_FILE} is of the kind {kind!r}, but the configuration says planner="
                    f"{self.config.planner!r}; load the checkpoint with the planner that it was trained with."
                )
            values, store = self.planner_values, AnswerStore(self.answers_folder)
            encode = functools.partial(self.embed_texts, processor.tokenizer)
            if kind == "mllm":
                if (values.get("vectors") == "text_encoder") != (self.config.planner_kind == "endpoint"):
                    raise ValueError(
                        "The planner was trained with vectors of the text encoder if on a server, and of its own if local, "
                        f"which planner_kind={self.config.planner_kind!r} is not; load the checkpoint with the planner_kind "
                        "that it was trained with."
                    )
                mllm = self.load_language_model()
                with sound_side_file(PLANNER_FILE):
                    self._planner = MllmPlanner.from_dict(values, mllm, self.config, store, encode)
            else:
                with sound_side_file(PLANNER_FILE):
                    self._planner = LightPlanner.from_dict(values, encode, self.config, store)
        return self._planner

    @property
    def asked_model(self) -> Mllm | None:
        """The language model that plans; None where there is none."""
        if isinstance(self._planner, MllmPlanner):
            return self._planner.mllm
        return self.load_language_model() if self.config.planner_model is not None else None

    @property
    def describes_features(self) -> bool:
        """Whether features are described to the planner in words: of some modality at least they have names."""
        values = self.planner_values if self._planner is None else self._planner.to_dict()
        known = (values or {}).get("verbalizer")
        return known is not None and bool(MsaVerbalizer.from_dict(known).modalities)

    @property
    def knowledge_base(self) -> KnowledgeBase | None:
        """What evidence is retrieved from; loaded when it is first needed, None where the checkpoint has none.

        Raises:
            ValueError: If it cannot be read, or its entries are of another model.
        """
        if self._knowledge_base is None and self.stored_file(DESCRIPTION_FILE, KNOWLEDGE_BASE_FOLDER) is not None:
            self.knowledge_base = KnowledgeBase.fetch(lambda name: self.stored_file(name, KNOWLEDGE_BASE_FOLDER))
        return self._knowledge_base

    @knowledge_base.setter
    def knowledge_base(self, base: KnowledgeBase | None) -> None:
        if base is not None:
            config = self.config
            found = {name: tuple(value.shape[1:]) for name, value in base.values.items()}
            needed = {name: ((config.positions(name) + 1) // 2, config.latent_dim) for name in config.modalities}
            widths = base.plans.shape[1], base.observations.shape[1]
            if found != needed or widths != (config.plan_width, config.observation_width):
                raise ValueError(
                    f"The knowledge base has plans of width {widths[0]}, observations of {widths[1]} and latents {found}, "
                    f"but this model needs {config.plan_width}, {config.observation_width} and {needed}; build it with this "
                    "model (hf-msa kb build)."
                )
        self._knowledge_base = base

    @torch.no_grad()
    def embed_texts(self, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
        """Mean state of the text encoder for each text, `(texts, text width)` float32, by which the light planner reads."""
        found = []
        for begin in range(0, len(texts), _TEXTS_AT_ONCE):
            encoded = tokenizer(
                list(texts[begin : begin + _TEXTS_AT_ONCE]),
                padding=True,
                truncation=True,
                # Some encoders count their positions from beyond 0: the tokenizer knows how many are left.
                max_length=min(tokenizer.model_max_length, self.config.text_config.max_position_embeddings),
                return_tensors="pt",
                return_token_type_ids=False,
            ).to(self.device)
            hidden = self.encode_text(encoded["input_ids"], encoded["attention_mask"])
            found.append(masked_mean(hidden.float(), encoded["attention_mask"]).cpu())
        embedded: np.ndarray = torch.cat(found).numpy()
        return embedded

    # --- Perceiving ---

    def perceive(self, batch: Batch, text_states: Tensor | None = None) -> Perception:
        """Put what is observed of a batch on the positions that the executor works on; arguments as of `forward`.

        A position that was dropped is not observed; a modality of a sample is missing if none of its positions is left,
        where the special tokens of text do not count.
        """
        inputs = self.read(batch)
        seen = Perception({}, {}, {}, {}, {}, {})
        for name in self.config.modalities:
            value, visible = inputs.values(name), inputs.observed(name)
            seen.available[name], seen.seen[name] = visible.any(dim=1), (value, visible)
        given = {name: inputs.attention(name).bool().sum(dim=1) for name in self.config.modalities}
        for name, (value, visible) in seen.seen.items():
            if name == "text":
                real = inputs.attention(name).bool()
                value = self._text_features(value, real, seen.available[name], text_states)
            seen.lengths[name] = self._lengths(name, given, seen.available)
            seen.values[name], seen.masks[name], missing = self._on_grid(name, value, visible, seen.lengths[name])
            seen.wanted[name] = torch.where(seen.available[name].unsqueeze(1), seen.masks[name], missing)
        return seen

    def available(self, batch: Batch) -> dict[str, Tensor]:
        """Whether anything of each modality is observed `(batch,)`; see `perceive`."""
        inputs = self.read(batch)
        return {name: inputs.observed(name).any(dim=1) for name in self.config.modalities}

    def _lengths(self, name: str, given: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        """Lengths of a modality `(batch,)`: where it is missing what observed ones let expect, else those of the inputs."""
        expected, longest = given[name], getattr(self.config, f"{name}_max_length")
        for other, slope, intercept in reversed((self.config.missing_length_fits or {}).get(name, [])):
            guess = (given[other] * slope + intercept).round().clamp(1, longest).to(expected)
            expected = torch.where(available[other], guess, expected)
        return torch.where(available[name], given[name], expected)

    def _text_features(self, input_ids: Tensor, real: Tensor, available: Tensor, states: Tensor | None) -> Tensor:
        """Standardised states of the text encoder, zeros for rows whose text is missing."""
        if states is None:
            states = self.text_mean.new_zeros(*input_ids.shape, len(self.text_mean))
            rows = available.nonzero().squeeze(1)
            if len(rows):
                with torch.no_grad():
                    encoded = self.encode_text(input_ids[rows], real[rows].long())
                states = states.index_copy(0, rows, encoded.to(states.dtype))
        return (states - self.text_mean) / self.text_std

    def _on_grid(self, name: str, values: Tensor, visible: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values and what is visible on the fixed number of positions, padded, or averaged where there may be more.

        Beside them what is generated where the modality is missing: as many positions as it is taken to have.
        """
        positions = self.config.positions(name)
        values = values.masked_fill(~visible.unsqueeze(-1), 0.0)
        if getattr(self.config, f"{name}_max_length") > positions:
            lengths = torch.full_like(lengths, positions)
            values, visible = average_positions(values, visible, positions)
        short = positions - values.shape[1]
        missing = torch.arange(positions, device=lengths.device) < lengths.unsqueeze(1)
        return F.pad(values, (0, 0, 0, short)), F.pad(visible, (0, short)), missing

    @torch.no_grad()
    def encode_observed(self, perception: Perception) -> dict[str, Tensor]:
        """Scaled latents of what is observed of each modality `(batch, latents, latent_dim)`; zeros where it is missing."""
        return {
            name: executor.vae.latents(perception.values[name], perception.masks[name])
            for name, executor in self.executors_by_name.items()
        }

    # --- Planning and retrieving ---

    def observations(
        self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]], processor: Any
    ) -> list[Observation]:
        """What the planner is shown of each sample of a batch; see `observe_rows`."""
        if self.media is not None and self.config.asks_language_model:
            rows = [{**row, **self.media(row)} for row in rows]
        return observe_rows(rows, inputs, processor, self.config.modalities)

    def plan_inputs(
        self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]], processor: Any
    ) -> tuple[list[PlanChoice] | None, dict[str, Tensor]]:
        """Plan for a batch: `plan_observations` of its `observations`."""
        return self.plan_observations(self.observations(inputs, rows, processor), processor)

    def plan_observations(
        self, observations: Sequence[Observation], processor: Any, always: bool = False, planner: Planner | None = None
    ) -> tuple[list[PlanChoice] | None, dict[str, Tensor]]:
        """The plans, None where noise stands for them; and what `forward` takes of them, the arguments `..._vectors`.

        Args:
            observations: What is observed of each sample.
            processor: See `planner`, also for errors.
            always: Also where noise stands for plans, as knowledge bases are made of plans.
            planner: Plans in the place of the model's own.
        """
        planner, plans = planner or self.planner(processor), None
        if not always and self.config.plan_source == "noise":
            vectors = {"observation_vectors": planner.embed_observations(observations)}
        else:
            plans = planner.plan(observations)
            vectors = {
                "plan_vectors": np.stack([choice.plan_vector for choice in plans]),
                "observation_vectors": np.stack([choice.observation_vector for choice in plans]),
            }
            if self.config.classifier_plan:
                vectors["plan_scores"] = np.array([[choice.score / 3] for choice in plans])
            if self.config.plan_tokens == "per_constraint":
                three = [choice.constraint_vectors for choice in plans if choice.constraint_vectors is not None]
                vectors["constraint_vectors"] = np.stack(three)
        return plans, {name: torch.from_numpy(one).float().to(self.device) for name, one in vectors.items()}

    def own_entries(self, rows: Sequence[Mapping[str, Any]]) -> Tensor | None:
        """Rows of the samples' own entries, by `id`, `(batch,)`; `NO_ENTRY` for others, None without a knowledge base.

        They are not retrieved: where something was dropped of a training sample, its own entry would give it back.
        """
        base = self.knowledge_base
        return None if base is None else base.rows_of([str(row.get("id", "")) for row in rows]).to(self.device)

    def conditioning(
        self, perception: Perception, vectors: Mapping[str, Tensor | None], own_entries: Tensor | None = None
    ) -> Conditioning:
        """Retrieve evidence (section 3.4), and put together what generation depends on.

        Args:
            perception: Of the batch.
            vectors: The arguments `..._vectors` of `forward`; zeros stand for those that are not there.
            own_entries: Entries that are left out, see the method of this name; None: nothing is.
        """
        config, base = self.config, self.knowledge_base

        def given(name: str, width: int) -> Tensor:
            there = vectors.get(name)
            return self.text_mean.new_zeros(len(perception), width) if there is None else there.to(self.dtype)

        plan, score = given("plan_vectors", config.plan_width), given("plan_scores", 1)
        observation = self.observation_vectors(given("observation_vectors", config.plan_width), perception.pooled)
        tokens = plan.unsqueeze(1)
        if config.plan_tokens == "per_constraint":
            constraints = vectors.get("constraint_vectors")
            tokens = tokens.expand(-1, 3, -1) if constraints is None else constraints.to(plan)
        if config.plan_source == "noise":
            # Random directions: new ones in training, those of each sample's own seed otherwise.
            if self.training:
                noise = torch.randn_like(tokens)
            else:
                noise = draw_noise(perception.seeds(config.generation_seed, "plan"), tokens.shape[1:])[0].to(tokens)
            tokens = F.normalize(noise, dim=-1)
            plan, score = tokens[:, 0], torch.zeros_like(score)
        if base is None or config.retrieval_aggregation == "none" or not config.generation:
            return Conditioning(plan, tokens, observation, None, score)
        if config.index_factory == "Flat":
            base = self._knowledge_base = base.to(plan.device)
        asked = None
        if config.retrieval_query == "random_plan":
            seeds = perception.seeds(config.generation_seed, "random_plan")
            own = [NO_ENTRY] * len(plan) if own_entries is None else own_entries.tolist()
            asked = base.plans[random_entries(seeds, own, len(base), config.generation_seed)].to(plan)
        evidence = self.retriever(observation, plan, base, own_entries, asked)
        return Conditioning(plan, tokens, observation, evidence, score)

    def observation_vectors(self, words: Tensor, pooled: Mapping[str, Tensor]) -> Tensor:
        """u_X `(batch, observation_width)`: the planner's vectors `(batch, plan_width)`, and pooled features if wanted."""
        return torch.cat([words, *pooled.values()], dim=-1) if self.config.observation_features else words

    # --- Generating and classifying ---

    @functools.cached_property
    def _schedule(self) -> Any:
        """Noise schedule of training."""
        return build_scheduler("ddpm", self.config.num_train_timesteps, self.config.prediction_type)

    def _executor_inputs(
        self, name: str, conditioning: Conditioning, latents: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Observation, plan and evidence of a modality, the latter zeros of the shape of its latents where there is none."""
        found = conditioning.evidence
        evidence = torch.zeros_like(latents) if found is None else found.values[name].to(latents)
        return conditioning.observation, conditioning.plan_tokens, evidence

    @torch.no_grad()
    def execute(
        self, perception: Perception, conditioning: Conditioning, latents: dict[str, Tensor], draw: int = 0
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Generate whatever is missing (section 3.5, eq. 11), beside the `latents` of what is observed (`encode_observed`).

        Args:
            perception, conditioning, latents: Of the batch.
            draw: Number of the draw; each begins with noise of its own.

        Returns:
            By modality: latents with the missing ones generated; generated features `(batch, positions, width)`, zeros
            where the modality is there; and step costs `(batch, steps)`, NaN there.
        """
        config, complete, values, costs = self.config, dict(latents), {}, {}
        steps = config.num_inference_steps
        scheduler = build_scheduler(config.scheduler, config.num_train_timesteps, config.prediction_type)
        for name, executor in self.executors_by_name.items():
            rows = (~perception.available[name]).nonzero().squeeze(1)
            values[name] = torch.zeros_like(perception.values[name])
            costs[name] = torch.full((len(perception), steps), math.nan, device=rows.device)
            if not len(rows) or not config.generation:
                continue
            seeds = perception.seeds(config.generation_seed, f"{name}/{draw}" if draw else name)
            given = (*self._executor_inputs(name, conditioning, latents[name]), perception.wanted[name])
            features, made, cost = executor.generate(
                [seeds[row] for row in rows.tolist()], scheduler, steps, *(part[rows] for part in given)
            )
            complete[name] = latents[name].index_copy(0, rows, made.to(latents[name]))
            values[name] = values[name].index_copy(0, rows, features.to(values[name]))
            costs[name] = costs[name].index_copy(0, rows, cost.to(costs[name]))
        return complete, values, costs

    def classify(self, perception: Perception, conditioning: Conditioning, latents: Mapping[str, Tensor]) -> Tensor:
        """Classify each sample by its observation and the latents of all modalities (eq. 17); `(batch, classes)`."""
        pooled = {name: masked_mean(latents[name], LatentVae.latent_mask(perception.wanted[name])) for name in latents}
        logits: Tensor = self.fusion(conditioning, pooled)
        return logits

    def score(self, class_logits: Tensor) -> Tensor:
        """Mean score of the classes, weighted by their probabilities; `(batch, 1)` in label units."""
        scores = torch.tensor(list(self.config.family.classes.values()), device=class_logits.device)
        return (class_logits.float().softmax(dim=-1) * scores).sum(dim=-1, keepdim=True)

    def _generate(self, perception: Perception, conditioning: Conditioning) -> GeneratedBatch:
        """Generate what is missing, and classify; of several draws the means."""
        observed, count = self.encode_observed(perception), self.config.num_samples
        draws = [self.execute(perception, conditioning, observed, draw) for draw in range(count)]
        logits = torch.stack([self.classify(perception, conditioning, latents) for latents, _, _ in draws])
        class_logits = logits[0] if count == 1 else logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(count)
        drawn = [{name: torch.stack([draw[part][name] for draw in draws]) for name in observed} for part in range(3)]
        latents, values, costs = ({name: parts.mean(dim=0) for name, parts in part.items()} for part in drawn)
        spreads = {name: parts.std(dim=0) for name, parts in drawn[1].items()} if count > 1 else {}
        values["text"] = values["text"] * self.text_std + self.text_mean
        if spreads:
            spreads["text"] = spreads["text"] * self.text_std
        missing = {name: ~available for name, available in perception.available.items()}
        masks = {name: wanted & missing[name].unsqueeze(1) for name, wanted in perception.wanted.items()}
        evidence, base = conditioning.evidence, self._knowledge_base
        ids: list[list[str]] = [[] for _ in range(len(perception))]
        if evidence is not None and base is not None:
            ids = [[base.ids[row] for row in rows if row != NO_ENTRY] for rows in evidence.entries.tolist()]
        return GeneratedBatch(
            values={name: value.masked_fill(~masks[name].unsqueeze(-1), 0.0) for name, value in values.items()},
            masks=masks,
            lengths=perception.lengths,
            latents={name: value * missing[name].view(-1, 1, 1) for name, value in latents.items()},
            step_costs=costs,
            spreads={name: value.masked_fill(~masks[name].unsqueeze(-1), 0.0) for name, value in spreads.items()},
            evidence=evidence,
            evidence_ids=ids,
            class_logits=class_logits,
        )

    @torch.no_grad()
    def generate_missing(
        self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]] | None = None, processor: Any = None
    ) -> GeneratedBatch:
        """Generate what is missing of each sample: modalities that are dropped whole, or absent.

        Args:
            inputs: The forward's own arguments.
            rows: The raw rows, which plans are made from; see `MsaPreTrainedModel.predict_rows`. Without them the
                `..._vectors` in `inputs` are used, or zeros.
            processor: The model's processor, where rows are given; see `planner`, also for errors.

        Raises:
            ValueError: If the model generates nothing (`generation`).
        """
        if not self.config.generation:
            raise ValueError("This model was trained without generation; give one that generates what is missing.")
        plans, vectors = (None, {}) if rows is None else self.plan_inputs(inputs, rows, processor)
        perception = self.perceive(inputs)
        own_entries = None if rows is None else self.own_entries(rows)
        made = self._generate(perception, self.conditioning(perception, {**inputs, **vectors}, own_entries))
        made.plans = plans
        return made

    def compute(
        self,
        inputs: MsaInputs,
        labels: Tensor | None,
        *,
        plan_vectors: Tensor | None = None,
        plan_scores: Tensor | None = None,
        constraint_vectors: Tensor | None = None,
        observation_vectors: Tensor | None = None,
        text_states: Tensor | None = None,
        own_entries: Tensor | None = None,
        objective: Objective | None = None,
    ) -> OmgOutput:
        r"""Retrieve evidence, generate what is missing, classify; or compute a training loss.

        Plans need the words of a sample: without them zeros stand for plan and observation, the scores are others than
        those of `predict_rows`, and a warning says so.

        Args:
            inputs: The batch; with complete inputs for the objective `"generate"`.
            labels (`torch.FloatTensor` of shape `(batch,)`, *optional*): Scores in label units; give the loss.
            plan_vectors, observation_vectors (`torch.FloatTensor` of shape `(batch, plan_width)`): c_S, and u_X without
                pooled features.
            plan_scores (`torch.FloatTensor` of shape `(batch, 1)`): The planner's scores from -1 to 1; read with
                `classifier_plan`.
            constraint_vectors (`torch.FloatTensor` of shape `(batch, 3, plan_width)`): One for each constraint of the plan.
            text_states (`torch.FloatTensor` of shape `(batch, tokens, text width)`): States of the complete text, in place
                of running the text encoder; for training, where text is dropped whole or not at all.
            own_entries (`torch.LongTensor` of shape `(batch,)`): The samples' own rows in the knowledge base, left out.
            objective: `"pretrain"` gives the losses of the autoencoders and of the feature side of g, on what is observed;
                `"generate"` that of eqs. 15 and 18. None predicts.

        Raises:
            ValueError: If plans are needed and not given, or labels or complete inputs.
        """
        if self.config.prediction == "planner":
            raise ValueError("The planner's score needs the words of a sample: call predict_rows, or the pipeline.")
        if observation_vectors is None and labels is None and not self.training:
            warnings.warn(
                "OMG-Agent was called without plans, which need the words of a sample, so it runs on zeros in their place; "
                "predict_rows, the pipeline and hf-msa evaluate plan first.",
                stacklevel=2,
            )
        perception = self.perceive(inputs, text_states)
        if objective == "pretrain":
            return self._pretrain(perception, plan_vectors)
        vectors = {
            "plan_vectors": plan_vectors,
            "plan_scores": plan_scores,
            "constraint_vectors": constraint_vectors,
            "observation_vectors": observation_vectors,
        }
        conditioning = self.conditioning(perception, vectors, own_entries)
        if objective == "generate":
            if labels is None or any(inputs.complete(name) is None for name in self.modalities):
                raise ValueError(
                    "To learn to generate, labels and the complete inputs of all modalities are needed; collate with "
                    "return_complete=True."
                )
            whole = self.perceive(inputs.completed(), text_states)
            return self._learn_to_generate(perception, conditioning, whole, labels)
        made = self._generate(perception, conditioning)
        loss = None if labels is None else F.cross_entropy(made.class_logits, self.label_classes(labels))
        alignment = torch.full_like(made.class_logits[:, :1], math.nan)
        if made.evidence is not None:
            cost = made.evidence.alignment_cost.detach().to(alignment).unsqueeze(1)
            alignment = torch.where(perception.lacking.unsqueeze(1), cost, alignment)
        path = torch.stack([cost.mean(dim=1) for cost in made.step_costs.values()]).nanmean(dim=0).unsqueeze(1)
        return OmgOutput(
            loss=loss,
            logits=self.score(made.class_logits),
            losses=None if loss is None else {"task": loss.detach()},
            class_logits=made.class_logits,
            alignment_cost=alignment,
            path_cost=path.to(alignment),
        )

    @torch.no_grad()
    def predict_rows(
        self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]], processor: Any
    ) -> OmgOutput:
        """Plan from the rows, then predict; see `MsaPreTrainedModel.predict_rows`, and `planner` for errors."""
        started = time.perf_counter()
        observations = self.observations(inputs, rows, processor)
        seconds = time.perf_counter() - started
        plans, vectors = self.plan_observations(observations, processor)
        started = time.perf_counter()
        outputs: OmgOutput
        if self.config.prediction == "planner":
            scores = [[score_label(plan.score, self.config.family)] for plan in plans or ()]
            outputs = OmgOutput(logits=torch.tensor(scores, device=self.device))
        else:
            outputs = self(**{**inputs, **vectors, "own_entries": self.own_entries(rows)})
        seconds += time.perf_counter() - started
        if plans is None or outputs.logits is None:
            return outputs
        columns: dict[str, list[float]] = {"planned_score": [plan.plan.score for plan in plans]}
        columns["fallback_plan"] = [plan.is_fallback for plan in plans]
        if self.config.planner == "mllm":
            columns |= {
                "planner_calls": [plan.proposed.calls for plan in plans],
                "planner_prompt_tokens": [plan.proposed.prompt_tokens for plan in plans],
                "planner_tokens": [plan.proposed.tokens for plan in plans],
                "remembered": [plan.proposed.remembered for plan in plans],
                "seconds": [plan.seconds + seconds / len(plans) for plan in plans],
            }
        for name, values in columns.items():
            outputs[name] = outputs.logits.new_tensor(values, dtype=torch.float32).unsqueeze(1)
        return outputs

    # --- Training losses ---

    def _pretrain(self, perception: Perception, plan_vectors: Tensor | None) -> OmgOutput:
        """Losses of the parts that are frozen later, on what is observed, summed over modalities.

        For each modality the reconstruction and divergence of its autoencoder; and 1 - cosine of G(features) and the plan,
        mean over the samples that have the modality.
        """
        if plan_vectors is None:
            raise ValueError("The feature side of g learns from the plans of complete samples; give plan_vectors.")
        losses: dict[str, Tensor] = {}
        total = self.text_mean.new_zeros(())
        for name, executor in self.executors_by_name.items():
            values, mask = perception.values[name], perception.masks[name]
            reconstruction, kl = executor.vae(values, mask)
            there = perception.available[name].to(values.dtype)
            distance = 1.0 - F.cosine_similarity(executor.semantics(values, mask), plan_vectors, dim=-1)
            semantics = (distance * there).sum() / there.sum().clamp(min=1.0)
            total = total + reconstruction + self.config.kl_weight * kl + semantics
            losses |= {f"reconstruction_{name}": reconstruction, f"kl_{name}": kl, f"semantics_{name}": semantics}
        return OmgOutput(loss=total, losses={name: loss.detach() for name, loss in losses.items()})

    def _draws(self, perception: Perception, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Time steps `(batch,)` and noises of the targets' shapes: new ones in training, each sample's own otherwise."""
        steps, device = self.config.num_train_timesteps, self.text_mean.device
        if self.training:
            noises = {name: torch.randn_like(target) for name, target in targets.items()}
            return torch.randint(0, steps, (len(perception),), device=device), noises
        seeds = perception.seeds(self.config.generation_seed, "validation")
        noises = {
            name: draw_noise([seed + place for seed in seeds], target.shape[1:])[0].to(target)
            for place, (name, target) in enumerate(targets.items())
        }
        return torch.tensor([seed % steps for seed in seeds], device=device), noises

    def _learn_to_generate(
        self, perception: Perception, conditioning: Conditioning, whole: Perception, labels: Tensor
    ) -> OmgOutput:
        """Eqs. 15 and 18: one time step per sample, the one-step estimate in place of what is missing.

        A modality that a sample never had cannot be learned from it; the classifier then reads the evidence in its place.
        """
        config = self.config
        # What is missing has a length of its own; what is learned from has that of the truth.
        wanted = {
            name: torch.where(
                (~there & whole.available[name]).unsqueeze(1), whole.masks[name], perception.wanted[name]
            )
            for name, there in perception.available.items()
        }
        perception = dataclasses.replace(perception, wanted=wanted)
        latents, targets = self.encode_observed(perception), self.encode_observed(whole)
        timesteps, noises = self._draws(perception, targets)
        alpha_bar = self._schedule.alphas_cumprod.to(self.text_mean)[timesteps]
        # How far a one-step estimate can be trusted.
        trust = alpha_bar if config.aux_weight == "alpha_bar" else torch.ones_like(alpha_bar)
        sums = dict.fromkeys(("noise", "plan", "evidence"), self.text_mean.new_zeros(()))
        count, is_estimated = self.text_mean.new_zeros(()), torch.zeros_like(perception.lacking)
        for name, executor in self.executors_by_name.items():
            missing = ~perception.available[name]
            known = missing & whole.available[name]
            is_estimated = is_estimated | known
            given = self._executor_inputs(name, conditioning, latents[name])
            latents[name] = torch.where((missing & ~known).view(-1, 1, 1), given[2], latents[name])
            # Without anything to learn from, one row of weight 0 keeps the parameters in the graph: distributed training
            # waits for the gradients of all.
            rows = known.nonzero().squeeze(1) if known.any() else torch.zeros(1, dtype=torch.long, device=known.device)
            weights = known[rows].to(targets[name].dtype)
            target, mask, drawn = targets[name][rows], whole.masks[name][rows], (timesteps[rows], noises[name][rows])
            losses, noisy, estimate = executor(target, *drawn, self._schedule, *(part[rows] for part in given), mask)
            factors = {"noise": weights, "plan": weights * trust[rows], "evidence": weights * trust[rows]}
            sums = {term: total + (losses[term] * factors[term]).sum() for term, total in sums.items()}
            count = count + weights.sum()
            read = estimate if config.classifier_input == "estimate" else noisy
            chosen = torch.where(weights.view(-1, 1, 1) > 0, read, latents[name][rows])
            latents[name] = latents[name].index_copy(0, rows, chosen)
        class_logits = self.classify(perception, conditioning, latents)
        task = F.cross_entropy(class_logits, self.label_classes(labels), reduction="none")
        terms = {term: total / count.clamp(min=1.0) for term, total in sums.items()}
        terms["task"] = (task * torch.where(is_estimated, trust, torch.ones_like(trust))).mean()
        if conditioning.evidence is not None:
            cost = conditioning.evidence.alignment_cost * perception.lacking
            terms["alignment"] = cost.sum() / perception.lacking.sum().clamp(min=1)
        loss = terms["noise"]
        for term in list(terms)[1:]:
            loss = loss + getattr(config, f"{term}_loss_weight") * terms[term]
        return OmgOutput(
            loss=loss,
            logits=self.score(class_logits.detach()),
            losses={name: term.detach() for name, term in terms.items()},
            class_logits=class_logits,
        )


def random_entries(numbers: Sequence[int], own_entries: Sequence[int], entries: int, seed: int) -> list[int]:
    """Draw for each sample an entry other than its own, whose plan stands in for the sample's (Random-Plan retrieval).

    A draw depends on the sample's number, the seed, and how many `entries` there are; own entries may be `NO_ENTRY`.

    Raises:
        ValueError: If there is no entry to draw.
    """
    drawn = []
    for number, own in zip(numbers, own_entries, strict=True):
        others = entries - (own != NO_ENTRY)
        if others < 1:
            raise ValueError("The knowledge base has no entry other than the sample's own to draw; add one.")
        digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
        row = int.from_bytes(digest, "big") % others
        drawn.append(row + (own != NO_ENTRY and row >= own))
    return drawn
