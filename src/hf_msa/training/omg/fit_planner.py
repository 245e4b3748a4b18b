"""Fitting of OMG-Agent's planners to the training split: the means of their vectors, and the light planner's probes."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, islice

import numpy as np
from tqdm.auto import tqdm

from hf_msa.errors import MsaError
from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.msa_verbalizer import MsaVerbalizer
from hf_msa.models.omg_light_planner import Lexicon, LightPlanner, RidgeProbe, tokenize
from hf_msa.models.omg_observation import Observation
from hf_msa.models.omg_plan import FALLBACK_PLAN, parse_plan, schema_violations
from hf_msa.models.omg_plan_store import PlanStore
from hf_msa.models.omg_planner import Centering, Planner

# Observations that are planned for together: their media need not all be in memory.
_AT_ONCE = 64


def randomly_restricted(observation: Observation, seed: int, draw: int = 0) -> Observation:
    """The same clip with a random set of its modalities, at least one: each set, the whole one too, is equally likely.

    The set depends on the seed, the number of the draw, e.g. of the epoch, and what is observed alone.
    """
    names = observation.modalities
    if len(names) < 2:
        return observation
    digest = hashlib.blake2b(f"{seed} {draw} {observation.digest}".encode(), digest_size=16).digest()
    chosen = int.from_bytes(digest) % (2 ** len(names) - 1) + 1
    return observation.restricted([name for place, name in enumerate(names) if chosen >> place & 1])


def fit_centering(planner: Planner, observations: Iterable[Observation], seed: int | None = None) -> None:
    """Give a planner the means of its vectors: of all candidates that keep to the schema, and of all observations.

    Args:
        planner: A light one is fitted already.
        observations: Of the training split alone, as complete as they are; read once, some at a time.
        seed: Count each clip once more with some modalities missing (`randomly_restricted`), as plans are asked for in both
            states. None: only as it is.

    Raises:
        MsaError: If there is none.
    """
    bar = tqdm(observations, desc="plans of training clips", leave=False, disable=None)
    clips = (
        seen for whole in bar for seen in ([whole] if seed is None else [whole, randomly_restricted(whole, seed)])
    )
    sums, counts = [np.zeros(()), np.zeros(())], [0, 0]
    while chunk := list(islice(clips, _AT_ONCE)):
        written = [text for proposed in planner.propose(chunk) for text, _ in proposed if not schema_violations(text)]
        texts = [parse_plan(text).to_text() for text in written]
        observed = planner.vectors([planner.content(seen) for seen in chunk])
        vectors = [planner.vectors(texts) if texts else None, observed]
        for place, some in enumerate(vectors):
            if some is not None:
                sums[place] = sums[place] + some.sum(0, dtype=np.float64)
                counts[place] += len(some)
    if not counts[1]:
        raise MsaError("No observations were given; the means are taken over those of the training split.")
    if not counts[0]:
        sums[0], counts[0] = planner.vectors([FALLBACK_PLAN.to_text()])[0], 1
    plan_mean, observation_mean = (
        np.asarray(one / count, np.float32) for one, count in zip(sums, counts, strict=True)
    )
    planner.centering = Centering(plan_mean, observation_mean)


def fit_lexicon(texts: Sequence[str], labels: Sequence[float], prior: float = 5.0) -> Lexicon:
    """Count the words of the training transcripts; the prior has to be above 0."""
    mean = float(np.mean(labels)) if len(labels) else 0.0
    words: dict[str, tuple[int, float]] = {}
    for text, label in zip(texts, labels, strict=True):
        for word in sorted(set(tokenize(text))):
            count, total = words.get(word, (0, 0.0))
            words[word] = (count + 1, total + label - mean)
    return Lexicon(mean, words, prior)


def score_without_itself(lexicon: Lexicon, text: str, label: float) -> float:
    """A training transcript's score by a lexicon without it: a probe would otherwise trust scores too much."""
    counts = [lexicon.words[word] for word in sorted(set(tokenize(text)))]
    weights = [(total - (label - lexicon.mean)) / (count - 1 + lexicon.prior) for count, total in counts]
    return float(np.mean(weights)) if weights else 0.0


def fit_probe(features: np.ndarray, labels: np.ndarray, ridge: float = 1.0) -> RidgeProbe:
    """Minimise mean squared error + ridge * |weights|^2 over features `(rows, features)` and labels `(rows,)`.

    The ridge, above 0, is as strong for any number of rows.
    """
    center, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(center)), scale, 1.0)
    x, bias = (features - center) / scale, float(labels.mean())
    y = labels - bias
    weights = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ y)
    return RidgeProbe(center, scale, weights, bias, float(np.sqrt(np.mean((y - x @ weights) ** 2))))


def fit_light_planner(
    observations: Sequence[Observation],
    labels: Sequence[float],
    encode: Callable[[Sequence[str]], np.ndarray],
    config: OmgConfig,
    verbalizer: MsaVerbalizer | None = None,
    store: PlanStore | None = None,
    ridge: float = 1.0,
) -> LightPlanner:
    """Fit lexicon and a probe for each set of modalities; `fit_centering` is to follow.

    Args:
        observations, labels: Of the training split, as complete as it is.
        encode, config, verbalizer, store: See `LightPlanner`.
        ridge: See `fit_probe`.
    """
    texts = [seen.transcript for seen in observations]
    spoken = [(text, label) for text, label in zip(texts, labels, strict=True) if text is not None]
    lexicon = fit_lexicon([text for text, _ in spoken], [label for _, label in spoken])
    planner = LightPlanner(encode, config, lexicon, {}, verbalizer, store=store)
    rows = planner.probe_inputs(observations)
    for row, text, label in zip(rows, texts, labels, strict=True):
        if text:
            row["text"][0] = score_without_itself(lexicon, text, label)
    for count in range(1, len(MODALITIES) + 1):
        for pattern in combinations(MODALITIES, count):
            members = [index for index, row in enumerate(rows) if set(pattern) <= set(row)]
            if members:
                table = np.stack([np.concatenate([rows[index][name] for name in pattern]) for index in members])
                planner.probes[pattern] = fit_probe(table, np.array([labels[index] for index in members]), ridge)
    return planner
