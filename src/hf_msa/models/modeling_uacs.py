"""U-ACS: a small model answers what it is sure of and hands the rest to a multimodal language model, the expert.

Paper: "Uncertainty-Aware Collaborative System of Large and Small Models for Multimodal Sentiment Analysis", arXiv
2509.04459 v1. `forward` is the small model; the cascade needs the transcript and is in `predict_rows`.
"""

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .configuration_uacs import UacsConfig, published_name
from .modeling_msa import SideFile, read_labels, read_side_file, sound_side_file
from .modeling_ubm import UbmForSentimentAnalysis, UbmOutput
from .msa_answer_store import AnswerStore, content_hash
from .msa_inputs import MsaInputs
from .msa_language_model import AsksLanguageModel
from .msa_mllm import Mllm, MllmRequest
from .msa_mllm_answers import label_entropy, parse_score
from .msa_observed import missing_positions, visible_media, visible_words
from .msa_remembering import RememberingMllm, known_identity
from .msa_schema import FEATURE_MODALITIES
from .msa_verbalizer import MsaVerbalizer
from .uacs_prompts import direct_prompt, second_part
from .uacs_rules import FAST, MLLM, ROUTES, VERIFY, WEIGHTED, Floats, answer_routes, random_choice, small_weight

VERBALIZER_FILE = "verbalizer.json"
_MEDIA_KEYS = dict(zip(FEATURE_MODALITIES, ("waveform", "frames"), strict=True))
# Columns of the output in which the expert's answers to a sample are added up.
_COUNTS = ("expert_calls", "expert_prompt_tokens", "expert_tokens", "remembered", "unparsed")
# So many batches of the expert are filled before it is asked: at most the last of them is not full.
_EXPERT_BATCHES = 32


@dataclass
class UacsOutput(UbmOutput):
    """Output of `UacsForSentimentAnalysis`; of what was not needed for a sample there is NaN.

    Args:
        loss, losses, class_logits, uncertainty, embeddings: Of the small model; see `UbmOutput`.
        logits (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The system's score, in label units.
        small_score (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The small model's score.
        expert_score (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The expert's first score. Where that could not
            be read: the small model's or, where the expert alone is to answer (`route="mllm"`), the neutral one.
        expert_uncertainty (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Of that answer, in nats; infinite where
            it could not be read.
        weight (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The small model's, where both were averaged.
        second_score (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The expert's second score, or its first one
            where that could not be read.
        route (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Whose answer it is, an index into `ROUTES`.
        expert_calls (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Questions to the expert.
        expert_prompt_tokens (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Tokens of the questions; NaN where it
            does not say.
        expert_tokens (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Tokens that it wrote.
        remembered (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Answers that were known from before.
        unparsed (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Answers that could not be read, or none at all.
        seconds (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Time spent on the sample: its share of each model's
            on the samples that went through it together, what it takes to make the questions (recordings, words for
            features) included, loading the expert not. A remembered answer counts with the time that it took when it was
            given. The small model's alone is not measured in `forward`.
    """

    small_score: torch.Tensor | None = None
    expert_score: torch.Tensor | None = None
    expert_uncertainty: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    second_score: torch.Tensor | None = None
    route: torch.Tensor | None = None
    expert_calls: torch.Tensor | None = None
    expert_prompt_tokens: torch.Tensor | None = None
    expert_tokens: torch.Tensor | None = None
    remembered: torch.Tensor | None = None
    unparsed: torch.Tensor | None = None
    seconds: torch.Tensor | None = None


@dataclass(frozen=True)
class ExpertAnswer:
    """What the expert said of a sample.

    Args:
        text: Its words; None where there was no answer at all.
        score: In label units, within the label range; None where it cannot be read, see `parse_score`.
        uncertainty: Mean entropy of the score's tokens in nats (eq. 10); infinite without one.
        prompt_tokens: How many the question has; NaN where the expert does not say.
        tokens: How many it wrote.
        seconds: How long it took.
        is_remembered: Whether it was known from before.
    """

    text: str | None
    score: float | None
    uncertainty: float
    prompt_tokens: float
    tokens: int
    seconds: float
    is_remembered: bool


@dataclass(frozen=True, eq=False)
class _SmallPass:
    """What the small model said of a batch, and what the expert is to be asked about it.

    Args:
        outputs: Of the small model.
        small: Its scores `(batch,)`.
        uncertainty: Its uncertainties `(batch,)`.
        seconds: Its time per sample `(batch,)`.
        chosen: Indices of the samples that are handed on.
        requests: The questions about them.
    """

    outputs: UacsOutput
    small: Floats
    uncertainty: Floats
    seconds: Floats
    chosen: NDArray[np.int64]
    requests: list[MllmRequest]


class UacsForSentimentAnalysis(AsksLanguageModel, UbmForSentimentAnalysis):
    """The small model's weights, and the cascade around it.

    The expert is no part of the weights: it is loaded at the first sample that the small model hands on, or given by
    `set_expert`. Beside the weights the checkpoint's folder holds the expert's adapter, if it has one, and the statistics
    of the verbaliser.

    Example:
        ```python
        from hf_msa import UacsConfig, UacsForSentimentAnalysis

        config = UacsConfig(audio_dim=5, vision_dim=20, route="fast")  # widths are those of the data
        model = UacsForSentimentAnalysis.from_text_pretrained("data/sample/text_model", config)
        ```
    """

    config: UacsConfig
    SIDE_FILES = (*AsksLanguageModel.SIDE_FILES, SideFile(VERBALIZER_FILE))
    COST_COLUMNS = {
        "calls": "expert_calls",
        "prompt_tokens": "expert_prompt_tokens",
        "tokens": "expert_tokens",
        "seconds": "seconds",
        "remembered": "remembered",
        "unreadable": "unparsed",
    }
    value_names = {"route": ROUTES}

    def __init__(self, config: UacsConfig) -> None:
        super().__init__(config)
        self.verbalizer: MsaVerbalizer | None = None
        self._expert: Mllm | None = None
        self._remembering: RememberingMllm | None = None

    @property
    def output_columns(self) -> dict[str, tuple[str, ...]]:
        """Classes of the class logits where they are the system's: where the small model alone answers."""
        return super().output_columns if self.config.route == "fast" else {}

    @classmethod
    def routes_of(cls, columns: Mapping[str, Any]) -> dict[str, float]:
        """The shares of samples by who answered."""
        return {name: float(np.mean(columns["route"] == index)) for index, name in enumerate(ROUTES)}

    # --- What lies beside the weights ---

    def load_side_files(self) -> None:
        """Read the verbaliser's statistics; the expert's adapter is not fetched before the expert is needed."""
        super().load_side_files()
        file = self.stored_file(VERBALIZER_FILE) if self.config.use_verbalizer else None
        if file is not None:
            values = read_side_file(file)
            with sound_side_file(VERBALIZER_FILE):
                self.verbalizer = MsaVerbalizer.from_dict(values)

    def save_side_files(self, folder: Path) -> None:
        """Write the verbaliser's statistics and the expert's adapter, where there are some."""
        super().save_side_files(folder)
        if self.verbalizer is not None:
            text = json.dumps(self.verbalizer.to_dict(), ensure_ascii=False, allow_nan=False)
            (folder / VERBALIZER_FILE).write_text(text + "\n", encoding="utf-8")

    # --- The expert ---

    @property
    def expert(self) -> Mllm:
        """The expert; made when it is first needed.

        Raises:
            ValueError: If the configuration names none, or its adapter is not there.
            ImportError: If a package that it needs is not installed.
        """
        if self._expert is None:
            self._expert = self.load_language_model()
        return self._expert

    @property
    def asked_model(self) -> Mllm | None:
        """The expert; None where there is none."""
        return None if self._expert is None and self.config.expert_model is None else self.expert

    @property
    def describes_features(self) -> bool:
        """Whether features are described to the expert in words: of some modality at least, they have names."""
        return self.config.use_verbalizer and self.verbalizer is not None and bool(self.verbalizer.modalities)

    def set_expert(self, expert: Mllm | None) -> None:
        """Ask this model in place of the one that the configuration names.

        A threshold that was calibrated with another expert does not hold for it: the cascade then refuses to predict, unless
        the checkpoint was loaded with a `tau_2` of one's own.

        Args:
            expert: Any; None goes back to the configuration's.
        """
        self._expert = expert
        self._remembering = None

    def calibrated_with(self) -> dict[str, str | None]:
        """Which expert is asked, and a hash of how: what its threshold depends on beside the configuration."""
        described = {}
        if self.describes_features:
            widths = {name: getattr(self.config, f"{name}_dim") for name in self.config.modalities[1:]}
            described = {name: np.linspace(-1, 1, 4 * width).reshape(4, width) for name, width in widths.items()}
        prompts = [
            self._request(row, words, {}).prompt for row in ({}, described) for words in ("WHAT A FILM, REALLY", None)
        ]
        known = known_identity(self.expert)
        return {
            "model": published_name(str(known["model"])),
            "adapter": known.get("adapter"),
            "wording": content_hash(prompts),
        }

    def _check_calibration(self) -> None:
        """Check that the expert's threshold holds for who is asked, and how.

        Raises:
            ValueError: If it does not.
        """
        fitted = self.config.calibrated_with
        if fitted is None:
            return
        asked = self.calibrated_with()
        other = next((name for name in asked if asked[name] != fitted.get(name)), None)
        if other is not None:
            what = "questions of another wording" if other == "wording" else f"the {other} {fitted.get(other)!r}"
            raise ValueError(
                f"tau_2 was calibrated with {what}, and does not hold for this expert; run `hf-msa calibrate RUN`, which "
                "trains nothing, or load the checkpoint with a tau_2 of your own."
            )

    def ask_expert(self, requests: Sequence[MllmRequest]) -> list[ExpertAnswer]:
        """Ask the expert once for each request, taking the most probable tokens, unless the answer is known.

        Answers are remembered in `answers_folder`, or for this process. A request that fails while others are answered is an
        unreadable answer.

        Args:
            requests: What is asked.

        Raises:
            OSError: If the expert cannot be reached, or not any more.
            ValueError: If it cannot be loaded, or answers nothing.
        """
        config, known = self.config, self._remembering
        if known is None or known.mllm is not self.expert or known.store.folder != self.answers_folder:
            known = self._remembering = RememberingMllm(self.expert, AnswerStore(self.answers_folder))
        found = []
        # An expert of one's own that writes what it likes need not know the argument.
        options: dict[str, Any] = {"only_number": config.label_range} if config.expert_constrained else {}
        for given in known.ask(requests, config.expert_max_new_tokens, config.expert_batch_size, **options):
            answer, text, score, uncertainty = given.answer, None, None, math.inf
            if answer is not None:
                text, score = answer.text, parse_score(answer, config.label_range)
                uncertainty = label_entropy(answer, config.label_range)
            costs = (given.prompt_tokens, given.tokens, given.seconds, given.is_remembered)
            found.append(ExpertAnswer(text, score, uncertainty, *costs))
        return found

    def expert_requests(
        self, rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Tensor] | None = None, processor: Any = None
    ) -> list[MllmRequest]:
        """The first question to the expert about each sample.

        Sound and pictures go along where a row has them (`waveform` `(samples,)` mono at 16 kHz, `frames` `(frames, height,
        width, 3)` uint8 at `frames_per_second`, 2 unless given) and the expert takes them (`raw_modalities`); otherwise the
        features are described in words, if the configuration says so and the data names them. Of what `inputs` mark as
        dropped the expert gets to know nothing. For a modality without features nothing says what is dropped: where
        anything of a sample is, its sound or pictures are left out as a whole.

        Args:
            rows: See `MsaPreTrainedModel.predict_rows`.
            inputs: The batch of these rows, in which something may be dropped; None: nothing is.
            processor: The model's processor; needed where words are dropped.

        Raises:
            ValueError: If features are to be described, but there are no statistics to do it with.
        """
        requests = []
        for index, (row, missing) in enumerate(zip(rows, missing_positions(rows, inputs), strict=True)):
            if self.media is not None and self.raw_modalities[1:]:
                row = {**row, **self.media(row)}
            if any(mask.any() for mask in missing.values()):
                unknown = [key for name, key in _MEDIA_KEYS.items() if name not in missing]
                row = {**row, **dict.fromkeys(unknown)}
            words = row.get("text")
            transcript = words if words and words.strip() else None
            if transcript is not None and inputs is not None and "text" in missing and missing["text"].any():
                ids = inputs["input_ids"][index].tolist()
                transcript = visible_words(ids, missing.pop("text"), processor.tokenizer)
            requests.append(self._request(row, transcript, missing))
        return requests

    def _request(
        self, row: Mapping[str, Any], transcript: str | None, missing: Mapping[str, np.ndarray]
    ) -> MllmRequest:
        media: dict[str, Any] = {}
        described: dict[str, np.ndarray] = {}
        for modality, key in _MEDIA_KEYS.items():
            if not row.get(f"{modality}_present", True):
                continue
            if row.get(key) is not None and modality in self.raw_modalities:
                media[modality] = visible_media(np.asarray(row[key]), missing.get(modality), cut=modality == "vision")
            elif self.config.use_verbalizer and modality in self.config.modalities and row.get(modality) is not None:
                described[modality] = np.asarray(row[modality])
        description = ""
        if described:
            if self.verbalizer is None:
                raw = " and ".join(_MEDIA_KEYS[name] for name in described)
                raise ValueError(
                    f"Features of {' and '.join(described)} are to be described to the expert, but this checkpoint has no "
                    f"statistics of them ({VERBALIZER_FILE}); give {raw} with the rows, or load with use_verbalizer=False."
                )
            described = {name: described[name] for name in self.verbalizer.modalities if name in described}
            # Frames behind the longest length are not read by the small model either.
            seen = {name: frames[: len(missing.get(name, frames))] for name, frames in described.items()}
            description = self.verbalizer.describe(seen, missing)
        given = [
            name
            for name in FEATURE_MODALITIES
            if media.get(name) is not None or (name in described and not np.all(missing.get(name, False)))
        ]
        prompt = direct_prompt(
            self.config.family,
            transcript,
            (*(() if transcript is None else ("text",)), *given),
            description,
        )
        waveform = media.get("audio")
        return MllmRequest(
            prompt,
            audio=None if waveform is None else waveform.astype(np.float32, copy=False),
            frames=media.get("vision"),
            frames_per_second=float(row.get("frames_per_second") or 2.0),
        )

    # --- Prediction ---

    def compute(
        self,
        inputs: MsaInputs,
        labels: Tensor | None,
        *,
        ensemble_members: Tensor | None = None,
        train_uncertainty: bool = True,
    ) -> UacsOutput:
        """Run the small model alone, whatever the route; see `UbmForSentimentAnalysis.compute`.

        The expert needs the words of a sample, so it is neither loaded nor asked; the output says of every sample that it
        took the fast route. Where the system would have asked the expert, a warning says so.
        """
        if self.config.asks_language_model and labels is None and not self.training:
            warnings.warn(
                "U-ACS was called without the rows, so the small model answers alone; predict_rows, the pipeline and "
                'hf-msa evaluate run the whole system. Load it with route="fast" to mean the small model.',
                stacklevel=2,
            )
        return self.small_model(inputs, labels, ensemble_members=ensemble_members, train_uncertainty=train_uncertainty)

    def small_model(self, inputs: MsaInputs, labels: Tensor | None, **training: Any) -> UacsOutput:
        """Run the small model; see `UbmForSentimentAnalysis.compute` for the arguments."""
        small = super().compute(inputs, labels, **training)
        assert small.logits is not None
        score = small.logits.detach()
        nothing, zero = torch.full_like(score, math.nan), torch.zeros_like(score)
        beside: dict[str, Any] = {
            **dict.fromkeys(("expert_score", "expert_uncertainty", "weight", "second_score", "seconds"), nothing),
            **dict.fromkeys(("route", *_COUNTS), zero),
        }
        return UacsOutput(**small, small_score=score, **beside)

    @torch.no_grad()
    def predict_rows(
        self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]], processor: Any
    ) -> UacsOutput:
        """Run the cascade on one batch; see `predict_batches`.

        Args:
            inputs: The small model's inputs; with labels also its loss is given.
            rows: See `MsaPreTrainedModel.predict_rows` and `expert_requests`.
            processor: The model's processor.

        Raises:
            ValueError: If a threshold is not set, or the expert cannot be loaded or reached.
            ImportError: If a package that the expert needs is not installed.
        """
        return next(iter(self.predict_batches([(inputs, rows)], processor)))

    @torch.no_grad()
    def predict_batches(
        self, batches: Iterable[tuple[Mapping[str, Tensor], Sequence[Mapping[str, Any]]]], processor: Any
    ) -> Iterator[UacsOutput]:
        """Run the cascade.

        The small model predicts each batch. What it is not sure of goes to the expert in one call, and what then needs
        verifying in another. Of a batch few samples are handed on, so that it would leave the expert's own batches half
        empty: questions are collected over as many batches as it takes to fill many of those, and a sample's `seconds` are
        its share of all that were asked together. On the random route as many samples of each batch are drawn as the
        cascade would hand on, so over all batches the numbers are equal.

        Args:
            batches: Of each batch the `inputs` and `rows` of `predict_rows`.
            processor: The model's processor.

        Yields:
            The outputs, in the order of the batches.

        Raises:
            ValueError: If a threshold is not set, or the expert cannot be loaded or reached.
            ImportError: If a package that the expert needs is not installed.
        """
        enough = _EXPERT_BATCHES * self.config.expert_batch_size
        waiting: list[_SmallPass] = []
        for inputs, rows in batches:
            waiting.append(self._small_pass(inputs, rows, processor))
            # Without a question there is nothing to wait for.
            if not 0 < sum(len(batch.requests) for batch in waiting) < enough:
                yield from self._finish(waiting)
                waiting = []
        if waiting:
            yield from self._finish(waiting)

    def _small_pass(
        self, inputs: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]], processor: Any
    ) -> _SmallPass:
        """Run the small model on a batch, and make the questions about what it hands on."""
        started = time.perf_counter()
        labels = inputs.get("labels")
        outputs = self.small_model(self.read(inputs), None if labels is None else read_labels(labels, len(rows)))
        small, uncertainty = _column(outputs.logits), _column(outputs.uncertainty)
        seconds = np.full(len(small), (time.perf_counter() - started) / max(len(small), 1))
        chosen = self._handed_on(uncertainty, rows)
        requests: list[MllmRequest] = []
        if len(chosen):
            started = time.perf_counter()
            part = {key: value[torch.from_numpy(chosen).to(value.device)] for key, value in inputs.items()}
            requests = self.expert_requests([rows[index] for index in chosen], part, processor)
            seconds[chosen] += (time.perf_counter() - started) / len(chosen)
        return _SmallPass(outputs, small, uncertainty, seconds, chosen, requests)

    def _finish(self, batches: Sequence[_SmallPass]) -> Iterator[UacsOutput]:
        """Ask the expert about what these batches hand on, and complete their outputs."""
        ends = np.cumsum([len(batch.small) for batch in batches])
        small = np.concatenate([batch.small for batch in batches])
        uncertainty = np.concatenate([batch.uncertainty for batch in batches])
        chosen = np.concatenate(
            [end - len(batch.small) + batch.chosen for batch, end in zip(batches, ends, strict=True)]
        )
        requests = [request for batch in batches for request in batch.requests]
        count = len(small)
        found: dict[str, Floats] = {
            name: np.full(count, math.nan) for name in ("expert_score", "expert_uncertainty", "weight", "second_score")
        }
        found |= {name: np.zeros(count) for name in _COUNTS}
        found["route"] = np.full(count, float(FAST))
        found |= {"logits": small.copy(), "seconds": np.concatenate([batch.seconds for batch in batches])}
        if len(chosen):
            if self.config.route == "cascade":
                self._check_calibration()
            # The small model has no part in what the expert says alone.
            alone = self.config.route == "mllm"
            last = np.full(len(chosen), float(self.config.family.neutral)) if alone else small[chosen]
            first, certainty = self._ask(requests, chosen, last, found)
            routes = self._routes(small[chosen], first, certainty)
            weight = small_weight(self._positive(uncertainty[chosen]), certainty, self.config.epsilon)
            averaged, verified = routes == WEIGHTED, routes == VERIFY
            final = np.where(averaged, weight * small[chosen] + (1 - weight) * first, first)
            found["expert_score"][chosen] = first
            found["expert_uncertainty"][chosen] = certainty
            found["weight"][chosen[averaged]] = weight[averaged]
            found["route"][chosen] = routes
            again = np.flatnonzero(verified)
            if len(again):
                seconds = [
                    dataclasses.replace(
                        requests[index],
                        prompt=requests[index].prompt
                        + second_part(
                            small[chosen[index]], uncertainty[chosen[index]], first[index], certainty[index]
                        ),
                    )
                    for index in again
                ]
                second, _ = self._ask(seconds, chosen[again], first[again], found)
                final[again] = found["second_score"][chosen[again]] = second
            found["logits"][chosen] = final
        for batch, end in zip(batches, ends, strict=True):
            outputs, device = batch.outputs, batch.outputs["logits"].device
            for name, values in found.items():
                part = values[end - len(batch.small) : end]
                outputs[name] = torch.from_numpy(part).to(device, torch.float32).unsqueeze(1)
            yield outputs

    def _handed_on(self, uncertainty: Floats, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
        """Indices of the samples that go to the expert."""
        if self.config.route == "fast":
            return np.zeros(0, dtype=np.int64)
        if self.config.route == "mllm":
            return np.arange(len(uncertainty))
        chosen = uncertainty > self._tau("tau_1")
        if self.config.route == "random":
            keys = [str(row.get("id", row["text"])) for row in rows]
            chosen = random_choice(keys, int(chosen.sum()), self.config.route_seed)
        return np.flatnonzero(chosen)

    def _routes(self, small: Floats, expert: Floats, expert_uncertainty: Floats) -> NDArray[np.int64]:
        """What is done with the expert's answers, as indices into `ROUTES`."""
        if self.config.route != "cascade":
            return np.full(len(small), MLLM)
        return answer_routes(
            small,
            expert,
            expert_uncertainty,
            self._tau("tau_2"),
            neutral_zone=self.config.neutral_zone,
            neutral=self.config.family.neutral,
            agreement_rule=self.config.agreement_rule,
            disagreement_rule=self.config.disagreement_rule,
        )

    def _tau(self, name: str) -> float:
        value: float | None = getattr(self.config, name)
        if value is None:
            raise ValueError(
                f"This checkpoint has no threshold {name}; calibrate it on a validation split (hf-msa calibrate), load it "
                f'with {name}=..., or with route="fast" to use the small model alone.'
            )
        return value

    def _positive(self, uncertainty: Floats) -> Floats:
        """Uncertainties that can be divided by: minus the distance from neutral is counted from the end of the range."""
        family = self.config.family
        farthest = max(family.high - family.neutral, family.neutral - family.low)
        return uncertainty + farthest if self.config.uncertainty_kind == "score" else uncertainty

    def _ask(
        self, requests: Sequence[MllmRequest], samples: NDArray[np.int64], fallback: Floats, found: dict[str, Floats]
    ) -> tuple[Floats, Floats]:
        """Ask the expert about samples, and count calls, tokens, unreadable answers and seconds in `found`.

        Args:
            requests: What is asked.
            samples: The samples' indices in `found`.
            fallback: Their scores where the answer cannot be read.
            found: Columns of the output, changed in place.

        Returns:
            Scores and uncertainties.
        """
        answers = self.ask_expert(requests)
        found["expert_calls"][samples] += 1
        found["seconds"][samples] += [answer.seconds for answer in answers]
        found["expert_prompt_tokens"][samples] += [answer.prompt_tokens for answer in answers]
        found["expert_tokens"][samples] += [answer.tokens for answer in answers]
        found["remembered"][samples] += [answer.is_remembered for answer in answers]
        found["unparsed"][samples] += [answer.score is None for answer in answers]
        scores = [
            last if answer.score is None else answer.score for answer, last in zip(answers, fallback, strict=True)
        ]
        return np.array(scores), np.array([answer.uncertainty for answer in answers])


def _column(values: Tensor | None) -> Floats:
    assert values is not None
    return values.detach().double().squeeze(-1).cpu().numpy()
