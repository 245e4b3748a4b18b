"""What each kind of mechanism can gain on version 2: the best that its question allows, from `inference`.

- *Frames*: the error of hidden frames of the live channels, over their variance around the corpus's mean (1 = the mean):
  of the best linear prediction from the modality's own visible frames and the text, and of the posterior mean from
  all that is visible; with and without the words, and by how much is known of the persona.
- *Lies*: the area under the ROC curve of the probability that a modality lies.
- *Label*: errors and sign accuracy, on clips whose modalities agree in sign and on those whose modalities do not.
- *Persona*: the same with the persona told, looked up, and a stranger: what memory of personas can gain at most.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.sample_corpus import clips, story
from hf_msa.data.sample_corpus.clips import Script
from hf_msa.data.sample_corpus.inference import PERSONA_KNOWLEDGE, Known, View, infer, word_frequencies
from hf_msa.data.sample_corpus.personas import personas_of, word_codes
from hf_msa.data.sample_corpus.story import Floats, SampleCorpusConfig, make_up
from hf_msa.models.msa_schema import FEATURE_MODALITIES, MODALITIES

#: Share of a modality's frames that is hidden, by the name of the setting.
_HIDDEN = {"half": 0.5, "all": 1.0}
_SAMPLES = 30

_Numbers = Sequence[tuple[int, int]]


def mechanism_ceilings(
    config: SampleCorpusConfig, numbers: _Numbers, clips_for_frames: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Return what each kind of mechanism can reach.

    Args:
        config: A corpus of version 2.
        numbers: Of the clips' videos and of the clips in them.
        clips_for_frames: Of how many of these clips frames are foretold, which takes longer.
        seed: Decides which frames are hidden, and the sentences that may be said.

    Returns:
        ``label[setting][persona]``: `mse`, `mae`, `accuracy_consistent`, `accuracy_inconsistent`; ``lies[modality]``: AUC or
        None; ``knowledge[setting]``: how much lower the squared error is with more knowledge of the persona than with less
        (``"inferred before unknown"``: looked up against a stranger), each with its standard error;
        ``frames[modality][hidden][words][method]``: relative squared errors.
    """
    script, _ = clips.make_clips(config, numbers)
    label: dict[str, Any] = {}
    lies: dict[str, float | None] = {}
    knowledge: dict[str, Any] = {}
    for setting, text in (("complete", True), ("text hidden", False)):
        label[setting] = {}
        squares: list[Floats] = []
        for persona in PERSONA_KNOWLEDGE:
            kept = _everything(script, config)
            if not text:
                kept["text"] = [np.zeros(len(tokens), dtype=bool) for tokens in script.tokens]
            known = [one for _, one in infer(config, numbers, kept, _SAMPLES, seed, persona)]
            predicted = np.array([one.label for one in known])
            squares.append((predicted - script.label) ** 2)
            label[setting][persona] = _label_errors(script, predicted)
            if text and persona == "inferred":
                lies = {
                    m: _area(np.array([one.lies[m] for one in known]), script.liar == i)
                    for i, m in enumerate(MODALITIES)
                }
        knowledge[setting] = {
            f"{names[0]} before {names[1]}": _mean_and_error(less - more)
            for names, (more, less) in zip(
                itertools.pairwise(PERSONA_KNOWLEDGE), itertools.pairwise(squares), strict=True
            )
        }
    few = numbers[:clips_for_frames]
    frames = {
        modality: {
            name: {
                words: _frame_errors(config, few, modality, share, words == "words", seed)
                for words in ("words", "no words")
            }
            for name, share in _HIDDEN.items()
        }
        for modality in FEATURE_MODALITIES
    }
    return {"clips": len(numbers), "label": label, "lies": lies, "knowledge": knowledge, "frames": frames}


def _mean_and_error(values: Floats) -> dict[str, float]:
    return {"mean": float(values.mean()), "standard_error": float(values.std() / np.sqrt(len(values)))}


def _everything(script: Script, config: SampleCorpusConfig) -> dict[str, list[NDArray[np.bool_]]]:
    kept = {"text": [np.ones(len(tokens), dtype=bool) for tokens in script.tokens]}
    for modality in FEATURE_MODALITIES:
        edges = clips.time_frames(script, float(getattr(config, f"{modality}_fps"))).edges
        kept[modality] = [np.ones(count, dtype=bool) for count in np.diff(edges)]
    return kept


def _label_errors(script: Script, predicted: Floats) -> dict[str, float | None]:
    signs = np.sign([script.latent[m] for m in MODALITIES])
    agree = (signs == signs[0]).all(axis=0)
    judged = script.label != 0
    right = (predicted > 0) == (script.label > 0)

    def accuracy(chosen: NDArray[np.bool_]) -> float | None:
        return float(right[chosen & judged].mean()) if (chosen & judged).any() else None

    return {
        "mse": float(((predicted - script.label) ** 2).mean()),
        "mae": float(np.abs(predicted - script.label).mean()),
        "accuracy_consistent": accuracy(agree),
        "accuracy_inconsistent": accuracy(~agree),
    }


def _area(scores: Floats, positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, ties counted half; None where one of the classes is empty."""
    above, below = scores[positive][:, None], scores[~positive]
    if not above.size or not below.size:
        return None
    return float(((above > below) + 0.5 * (above == below)).mean())


def _frame_errors(
    config: SampleCorpusConfig, numbers: _Numbers, modality: str, share: float, words: bool, seed: int
) -> dict[str, float]:
    """Return the relative squared error of each way to foretell the hidden frames of a modality."""
    script, shown = clips.make_clips(config, numbers)
    generator = np.random.default_rng(seed)
    kept = _everything(script, config)
    kept[modality] = [generator.random(len(flags)) >= share for flags in kept[modality]]
    if not words:
        kept["text"] = [np.zeros(len(tokens), dtype=bool) for tokens in script.tokens]
    mean = shown[modality].values.mean(axis=0)
    linear = _Linear(config, modality, words)
    squares: dict[str, float] = dict.fromkeys(
        ("mean", "linear", "linear, persona known", *(f"posterior, persona {name}" for name in PERSONA_KNOWLEDGE)), 0.0
    )
    for persona in PERSONA_KNOWLEDGE:
        found = infer(config, numbers, kept, _SAMPLES, seed, persona)
        for i, (views, known) in enumerate(found):
            view = views[modality]
            truth = view.values[view.hidden]
            squares[f"posterior, persona {persona}"] += float(
                ((foretell(config, modality, view, known, persona) - truth) ** 2).sum()
            )
            if persona == "known":
                squares["linear, persona known"] += float(
                    ((linear.foretell(script, i, view, True) - truth) ** 2).sum()
                )
            if persona == "unknown":
                squares["linear"] += float(((linear.foretell(script, i, view, False) - truth) ** 2).sum())
                squares["mean"] += float(((mean - truth) ** 2).sum())
    return {name: value / squares["mean"] for name, value in squares.items() if name != "mean"}


def foretell(config: SampleCorpusConfig, modality: str, view: View, known: Known, persona: str) -> Floats:
    """Return the posterior mean of the hidden frames (H, L) of a modality, in units of the frame noise."""
    channels = make_up(config, modality)
    direction = channels.sentiment[channels.live]
    means = known.level[modality] + view.sounding @ known.words[modality]
    means = means + (known.shown[modality] * view.strength)[:, None] * direction
    offset = story.SPEAKER_OFFSET**2
    if persona == "unknown":
        offset += clips.strengths_of(config)[modality].persona ** 2
    return means[view.hidden] + _krige(_noise(len(means)) + offset, view, (view.values - means)[view.kept])


def _noise(frames: int) -> Floats:
    """Return the covariance (T, T) of a clip's noise."""
    times = np.arange(frames)
    noise: Floats = story.NOISE_MEMORY ** np.abs(times[:, None] - times)
    return noise


def _krige(covariance: Floats, view: View, residuals: Floats) -> Floats:
    """Return the best linear prediction (H, L) of what is hidden from residuals (V, L) of what is visible."""
    if not view.kept.any():
        return np.zeros((int(view.hidden.sum()), residuals.shape[1]))
    seen = covariance[np.ix_(view.kept, view.kept)]
    foretold: Floats = covariance[np.ix_(view.hidden, view.kept)] @ np.linalg.solve(seen, residuals)
    return foretold


class _Linear:
    """The best linear prediction of hidden frames from the visible ones of the same modality and from the text.

    Second moments are the story's own; those of codes and levels are taken to be the same in all directions across
    the one of sentiment.
    """

    def __init__(self, config: SampleCorpusConfig, modality: str, words: bool) -> None:
        self._words, self._modality = words, modality
        strengths, personas = clips.strengths_of(config)[modality], personas_of(config)
        channels = make_up(config, modality)
        self._direction = channels.sentiment[channels.live]
        self._codes = strengths.articulation * word_codes(config, modality)
        frequencies = word_frequencies(config)
        self._code_mean = frequencies @ self._codes
        dimensions = max(1, len(self._direction) - 1)
        self._code_variance = float((frequencies @ (self._codes - self._code_mean) ** 2).sum()) / dimensions
        self._levels = strengths.persona * personas.level[modality]
        toward = personas.chances @ (self._levels @ self._direction) ** 2
        across = (personas.chances @ self._levels**2).sum() - toward
        self._level_variance = {"toward": float(toward), "across": float(across) / dimensions}
        self._signal, self._gain, self._chances = strengths.signal, personas.gain[modality], personas.chances
        moments = clips.moment_script(config)
        score, latent = moments.latent["text"], moments.latent[modality]
        slope = float(score @ latent / (score @ score)) if words else 0.0
        self._slope, self._spread = slope, float(((latent - slope * score) ** 2).mean())

    def foretell(self, script: Script, clip: int, view: View, persona_known: bool) -> Floats:
        """Return (H, L) in units of the frame noise."""
        who = int(script.persona[clip])
        numbers = script.numbers[clip, : len(script.tokens[clip])]
        gain = float(self._gain[who]) if persona_known else float(self._chances @ self._gain)
        gain_variance = 0.0 if persona_known else float(self._chances @ self._gain**2) - gain**2
        felt = self._slope * float(script.latent["text"][clip])
        codes = self._codes[numbers] if self._words else np.repeat(self._code_mean[None], len(numbers), axis=0)
        means = view.sounding @ codes + (self._signal * gain * felt * view.strength)[:, None] * self._direction
        if persona_known:
            means = means + self._levels[who]
        spread = self._spread * gain**2 + (felt**2 + self._spread) * gain_variance
        noise = _noise(len(means)) + story.SPEAKER_OFFSET**2
        level = {name: 0.0 if persona_known else value for name, value in self._level_variance.items()}
        across = noise + level["across"]
        if not self._words:
            across = across + self._code_variance * view.sounding @ view.sounding.T
        toward = noise + level["toward"] + self._signal**2 * spread * np.outer(view.strength, view.strength)
        residuals = (view.values - means)[view.kept]
        shown = residuals @ self._direction
        rest = residuals - shown[:, None] * self._direction
        return means[view.hidden] + _krige(across, view, rest) + _krige(toward, view, shown[:, None]) * self._direction
