"""The best prediction that the sample corpus's story allows from what survives a mask.

It is the posterior mean of the label, the best there is under squared error, computed by inverting `story` and
`grammar` with their true constants: nothing is fitted, and no label is looked at. Per clip:

1. *Text.* The words that survive and the number of words are known. Sentences that they may have belonged to are
   sampled exactly from the grammar (`SentenceGrammar.complete`); each gives a text sentiment.
2. *Audio and vision.* Along the hidden direction a frame is ``signal * strength * latent + offset + noise`` with a
   Gaussian speaker offset and AR(1) Gaussian noise. The surviving frames thus give a Gaussian likelihood of the
   modality's latent; frames lost by the tracker give nothing.
3. *Agreement.* Over the kinds of clips (consistent, neutral, silent, one modality lying) with their true shares, and
   over what a lie may say, the expected label is averaged with these weights.

What it is told that no model can fully know makes it a bound from above: the hidden directions, the speaker's gain
(not the offset), and which frames lie on a cue word. It uses nothing of a speaker's other clips, as no model does.

Version 2 is inverted by `inference`, which also reads hidden words from the frames and looks personas up.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_msa.data.sample_corpus import story
from hf_msa.data.sample_corpus.corpus_files import PlantedSplit
from hf_msa.data.sample_corpus.grammar import HIGHEST, LOWEST, grammar_for
from hf_msa.data.sample_corpus.inference import PERSONA_KNOWLEDGE, infer
from hf_msa.data.sample_corpus.story import Floats, SampleCorpusConfig, expected_label, tone_prior
from hf_msa.data.schema import ID_SEPARATOR
from hf_msa.errors import MsaError, unknown_name
from hf_msa.models.msa_schema import FEATURE_MODALITIES, MODALITIES

_GRID_STEP = 0.05


def ceiling_predictions(
    planted: PlantedSplit,
    kept: Mapping[str, Sequence[ArrayLike]],
    samples: int = 200,
    seed: int = 0,
    persona: str = "inferred",
) -> Floats:
    """Return the posterior mean of each clip's label given what survives.

    Args:
        planted: The planted facts of a split, see `read_planted`.
        kept: Per modality one bool array per clip, True = survives: ``"text"`` per word (no special tokens),
            ``"audio"`` and ``"vision"`` per frame. A modality that is left out survives whole.
        samples: Completed sentences per clip; the Monte-Carlo error falls with its square root.
        seed: Decides the completed sentences.
        persona: What is known of the clip's persona in version 2, see `inference`: ``"known"``, ``"inferred"`` from the clip
            by somebody who remembers all personas, or ``"unknown"``.

    Returns:
        (N,) float64, in label units.

    Raises:
        MsaError: If a mask does not fit its clip, or `persona` is unknown or not "inferred" for version 1.
    """
    flags = {modality: _checked(planted.rows, modality, kept.get(modality)) for modality in MODALITIES}
    config = planted.config
    if persona not in PERSONA_KNOWLEDGE:
        raise unknown_name("knowledge of the persona", persona, PERSONA_KNOWLEDGE)
    if config.version > 1:
        found = infer(config, clip_numbers_of(planted.rows), flags, samples, seed, persona)
        return np.array([known.label for _, known in found])
    if persona != "inferred":
        raise MsaError("Version 1 of the sample corpus has no personas; leave `persona` out.")
    completions = grammar_for(config.contrast_rate).complete(
        [row["tokens"] for row in planted.rows],
        flags["text"],
        tone_prior(config),
        samples,
        np.random.default_rng(seed),
    )
    slopes, curvatures = {}, {}
    for modality in FEATURE_MODALITIES:
        pairs = [
            _likelihood(config, modality, row, keep) for row, keep in zip(planted.rows, flags[modality], strict=True)
        ]
        slopes[modality], curvatures[modality] = np.array(pairs).reshape(-1, 2).T
    return _posterior_mean(config, completions.scores, completions.silent, slopes, curvatures)


def clip_numbers_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return the numbers of video and clip of rows, by their ids."""
    parts = [row["id"].split(ID_SEPARATOR) for row in rows]
    return [(int(video.removeprefix("video")), int(clip)) for video, clip in parts]


def kept_masks(planted: PlantedSplit, missing: Mapping[str, NDArray[np.bool_]]) -> dict[str, list[NDArray[np.bool_]]]:
    """Turn the missing-data engine's masks into what `ceiling_predictions` takes.

    Args:
        planted: The planted facts of a split.
        missing: Per modality (N, T_max) bool, True = dropped, rows in the order of `planted`. Text is masked per
            token of the corpus's own tokenizer: one special token, then one token per word.
    """
    kept = {}
    for modality, mask in missing.items():
        first = 1 if modality == "text" else 0
        kept[modality] = [
            ~mask[i, first : first + _length(row, modality)].astype(bool) for i, row in enumerate(planted.rows)
        ]
    return kept


def _length(row: Mapping[str, Any], modality: str) -> int:
    return len(row["tokens"] if modality == "text" else row[f"{modality}_evidence"])


def _checked(
    rows: Sequence[Mapping[str, Any]], modality: str, kept: Sequence[ArrayLike] | None
) -> list[NDArray[np.bool_]]:
    if kept is None:
        return [np.ones(_length(row, modality), dtype=bool) for row in rows]
    flags = [np.asarray(keep, dtype=bool) for keep in kept]
    if len(flags) != len(rows):
        raise MsaError(f"{len(flags)} {modality} masks were given for {len(rows)} clips; give one per clip.")
    for row, flag in zip(rows, flags, strict=True):
        if flag.shape != (_length(row, modality),):
            raise MsaError(
                f"The {modality} mask of {row['id']} has shape {flag.shape}; give one flag for each of its "
                f"{_length(row, modality)} {'words' if modality == 'text' else 'frames'}."
            )
    return flags


def _likelihood(
    config: SampleCorpusConfig, modality: str, row: Mapping[str, Any], keep: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return (b, c): the log likelihood of the modality's latent s is ``b s - c s^2 / 2`` plus a constant."""
    evidence = np.array(row[f"{modality}_evidence"], dtype=float)
    seen = np.flatnonzero(keep & ~np.isnan(evidence))
    if not len(seen):
        return 0.0, 0.0
    signal = getattr(config, f"{modality}_signal") * np.array(row[f"{modality}_strength"], dtype=float)[seen]
    # AR(1) noise is made white by subtracting from each frame what the one seen before it foretells.
    memory = story.NOISE_MEMORY ** np.diff(seen)
    scale = 1 / np.sqrt(1 - memory**2)

    def white(values: Floats) -> Floats:
        return np.concatenate([values[:1], (values[1:] - memory * values[:-1]) * scale])

    y, x, one = white(evidence[seen]), white(signal), white(np.ones(len(seen)))
    # The speaker's offset is integrated out.
    known = one @ one + 1 / story.SPEAKER_OFFSET**2
    return float(x @ y - (x @ one) * (one @ y) / known), float(x @ x - (x @ one) ** 2 / known)


def _posterior_mean(
    config: SampleCorpusConfig,
    text: Floats,
    silent: NDArray[np.bool_],
    slopes: Mapping[str, Floats],
    curvatures: Mapping[str, Floats],
) -> Floats:
    """Average the expected label over sentences (N, M), kinds of clips and lies.

    Args:
        config: The corpus's shares of kinds.
        text: (N, M) text sentiment of each sampled sentence.
        silent: (N, M) whether it says nothing by intent.
        slopes: Per modality (N,), see `_likelihood`.
        curvatures: Per modality (N,).
    """
    grid = np.arange(LOWEST + _GRID_STEP / 2, HIGHEST, _GRID_STEP)
    a, b = story.MAGNITUDE_BETA
    size = np.abs(grid) / HIGHEST
    density = size ** (a - 1) * (1 - size) ** (b - 1)
    half = density / density[grid > 0].sum()
    unvoiced = {sign: np.where(grid * sign > 0, half, 0.0) for sign in (1, -1)}

    def chance(modality: str, latent: Floats) -> Floats:
        slope, curvature = slopes[modality][:, None], curvatures[modality][:, None]
        at_grid = slope * grid - curvature * grid**2 / 2
        # Any factor per clip cancels in the end; this one keeps the exponential in range.
        peak = at_grid.max(axis=1, keepdims=True)
        relative: Floats = np.exp(slope * latent - curvature * latent**2 / 2 - peak)
        return relative

    on_grid = {modality: chance(modality, grid[None, :]) for modality in FEATURE_MODALITIES}
    on_text = {modality: chance(modality, text) for modality in FEATURE_MODALITIES}
    at_zero = {modality: chance(modality, np.zeros((1, 1))) for modality in FEATURE_MODALITIES}
    both_on_grid = on_grid["audio"] * on_grid["vision"]
    label_on_grid, label_on_text = expected_label(grid), expected_label(text)

    positive_lie = np.where(
        text == 0, 0.5, np.where(text < 0, story.OPPOSITE_SHARE, 0.0) + (1 - story.OPPOSITE_SHARE) / 2
    )

    def lie(weight_on_grid: Floats) -> Floats:
        """Integrate over what a lie about (N, M) text sentiments may say, weighted (N, G) on the grid."""
        up, down = weight_on_grid @ unvoiced[1], weight_on_grid @ unvoiced[-1]
        return positive_lie * up[:, None] + (1 - positive_lie) * down[:, None]

    kinds = config.kind_prior()
    spoken = kinds["consistent"] + kinds["conflicting"]
    conflict = kinds["conflicting"] / spoken if spoken else 0.0
    liar = dict(zip(MODALITIES, story.LIAR_SHARES, strict=True))
    true_text = (1 - conflict) * on_text["audio"] * on_text["vision"]
    true_text += conflict * liar["audio"] * on_text["vision"] * lie(on_grid["audio"])
    true_text += conflict * liar["vision"] * on_text["audio"] * lie(on_grid["vision"])
    false_text = conflict * liar["text"]
    speaking_weight = true_text + false_text * lie(both_on_grid)
    speaking_label = true_text * label_on_text + false_text * lie(both_on_grid * label_on_grid)

    unspoken = kinds["neutral"] + kinds["silent"]
    neutral = kinds["neutral"] / unspoken if unspoken else 0.0
    either = (unvoiced[1] + unvoiced[-1]) / 2
    silent_weight = neutral * (at_zero["audio"] * at_zero["vision"])[:, 0] + (1 - neutral) * (both_on_grid @ either)
    silent_label = (1 - neutral) * ((both_on_grid * label_on_grid) @ either)

    weight = np.where(silent, silent_weight[:, None], speaking_weight).sum(axis=1)
    label: Floats = np.where(silent, silent_label[:, None], speaking_label).sum(axis=1) / weight
    return label
