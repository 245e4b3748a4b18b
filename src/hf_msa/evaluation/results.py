"""The result of an evaluation on disk: ``results.json`` (numbers) and ``predictions.parquet`` (a row per prediction).

Everything that is printed, plotted, compared or written into a model card is read from ``results.json``; nothing is
typed by hand. The file is made from the predictions alone, so its numbers can be recomputed.

A prediction table has the columns ``id``, ``training_seed``, ``mask_seed``, ``rate`` (a missing rate, or the name of a
pattern), ``prediction`` and ``label``, and any more that a method wants to keep (``confidence``, ``gate``). It is a
full grid: each training seed, mask seed and rate scores the same rows once. Where it has the columns
``class_logits_negative``, ``class_logits_neutral`` and ``class_logits_positive``, or the seven from
``class_logits_strongly_negative`` to ``class_logits_strongly_positive``, the metrics of class logits come after those of
the score.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.missing import Condition, Rate
from hf_msa.errors import MsaError, reason, unknown_name
from hf_msa.evaluation.metrics import (
    METRICS,
    METRICS_BY_CLASSES,
    class_metrics,
    family_metrics,
    regression_metrics,
    resampled_metrics,
)
from hf_msa.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    confidence_interval,
    mean_and_std,
    resample_counts,
)
from hf_msa.files import atomic_write, write_json
from hf_msa.label_families import LABEL_FAMILIES, AnyFamily, find_label_family
from hf_msa.models.msa_schema import SENTIMENT_CLASSES, SENTIMENT_SCALE

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 2
"""The version of ``results.json`` that is written. All versions up to it are read: 1 called ``language_model_input``
``expert_input``."""

RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.parquet"
PREDICTION_COLUMNS = ("id", "training_seed", "mask_seed", "rate", "prediction", "label")
"""The columns that every prediction table has."""

CLASS_COLUMNS = tuple(f"class_logits_{name}" for name in SENTIMENT_CLASSES)
"""The columns of class logits, which the predictions of models with three classes have."""

SCALE_COLUMNS = tuple(f"class_logits_{name.replace(' ', '_')}" for name in SENTIMENT_SCALE)
"""The columns of class logits, which the predictions of models with seven classes have."""

PREDICTIONS_DIGEST = "predictions_sha256"
"""Where a result says which predictions it was made from: the hash of the file beside it. Older results do not."""

LANGUAGE_MODEL_INPUTS = {
    "media": "the transcript with sound and pictures",
    "media_audio": "the transcript with sound",
    "media_vision": "the transcript with pictures",
    "words": "the transcript with a description of the features in words",
    "transcript": "the transcript alone",
}
"""What a language model can be given, as results call it -> in words."""

MOST_UNREADABLE = 0.05
"""A larger share of answers of a language model that could not be read is warned of."""

Results = dict[str, Any]
"""The content of ``results.json``."""

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "ablation": (str, type(None)),
    "model": (str, type(None)),
    "recipe": (str, type(None)),
    "oracle": bool,
    "dataset": dict,
    "protocol": dict,
    "runs": list,
    "per_rate": list,
    "mean_over_rates": dict,
    "bootstrap": dict,
    "selection": list,
    "versions": dict,
    "config": dict,
}
_NUMBERS = ("floating", "integer")
_COLUMN_TYPES = {
    "id": ("string", "large_string"),
    "training_seed": ("integer", "null"),
    "mask_seed": ("integer", "null"),
    "rate": (*_NUMBERS, "string", "large_string"),
}
_ESTIMATE_KEYS = {"mean", "std", "n", "ci_low", "ci_high"}
COSTS = ("calls", "tokens", "seconds")
"""What a sample costs, as results call it."""

_MEDIA_KEYS = ("clips", "without_file")
# What a comparison may be made to compute by a file.
_MOST_RESAMPLES = 100_000


@dataclass(frozen=True)
class Predictions:
    """A grid of predictions, its rows sorted by id.

    Attributes:
        ids: The N sample ids, sorted.
        labels: Their labels, (N,).
        training_seeds: S seeds; None for a model of unknown seed.
        mask_seeds: M seeds of the missing-data protocol; None where nothing is masked.
        rates: R missing rates in ascending order, or patterns in order of appearance.
        scores: Predictions, (S, M, R, N).
        class_logits: Logits of negative, neutral and positive, (S, M, R, N, 3), or of the scores -3 to 3, (S, M, R, N, 7);
            None for models without them.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.float32]
    training_seeds: tuple[int | None, ...]
    mask_seeds: tuple[int | None, ...]
    rates: tuple[Rate, ...]
    scores: NDArray[np.float32]
    class_logits: NDArray[np.float32] | None = None

    @staticmethod
    def from_table(table: "pa.Table") -> "Predictions":
        """Arrange a prediction table as a grid.

        Args:
            table: See the module's description for its columns.

        Raises:
            MsaError: If a column is absent, the table is empty, a prediction is absent or given twice, or an id has
                several labels.
        """
        absent = [name for name in PREDICTION_COLUMNS if name not in table.column_names]
        if absent:
            raise MsaError(
                f"The prediction table lacks the column {absent[0]!r}; it needs {', '.join(PREDICTION_COLUMNS)}."
            )
        if not table.num_rows:
            raise MsaError("The prediction table has no rows; evaluate at least one sample.")
        classes = _class_columns(table.column_names)
        _check_columns(table, (*PREDICTION_COLUMNS, *classes))
        ids, id_codes = _encode(table, "id")
        training_seeds, training_codes = _encode(table, "training_seed")
        mask_seeds, mask_codes = _encode(table, "mask_seed")
        rates, rate_codes = _encode(table, "rate")
        shape = (len(training_seeds), len(mask_seeds), len(rates), len(ids))
        cells = np.ravel_multi_index((training_codes, mask_codes, rate_codes, id_codes), shape)
        counts = np.bincount(cells, minlength=math.prod(shape))
        if (counts != 1).any():
            cell = int((counts != 1).argmax())
            worst = np.unravel_index(cell, shape)
            seed, mask, rate, sample = (
                names[int(index)] for names, index in zip((training_seeds, mask_seeds, rates, ids), worst, strict=True)
            )
            raise MsaError(
                f"The prediction table holds {counts[cell]} predictions for id {sample!r} at training seed {seed}, "
                f"mask seed {mask} and rate {rate!r}; it must hold exactly one."
            )
        values = np.empty((math.prod(shape), 1 + len(classes)), dtype=np.float32)
        values[cells] = np.stack([table.column(name).to_numpy() for name in ("prediction", *classes)], axis=1)
        given = np.asarray(table.column("label").to_numpy(), dtype=np.float32)
        labels = np.empty(len(ids), dtype=np.float32)
        labels[id_codes] = given
        if (labels[id_codes] != given).any():
            sample = ids[int(id_codes[int((labels[id_codes] != given).argmax())])]
            raise MsaError(f"The prediction table gives id {sample!r} several labels; an id must name one sample.")
        order = np.argsort(np.asarray(ids))
        values = values.reshape(*shape, -1)[..., order, :]
        return Predictions(
            ids=tuple(ids[int(index)] for index in order),
            labels=labels[order],
            training_seeds=tuple(training_seeds),
            mask_seeds=tuple(mask_seeds),
            rates=tuple(rates),
            scores=np.ascontiguousarray(values[..., 0]),
            class_logits=np.ascontiguousarray(values[..., 1:]) if classes else None,
        )

    @property
    def fingerprint(self) -> str:
        """A short hash of ids and labels: equal for two evaluations of the same rows."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        digest.update(self.labels.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def metric_names(self, family: AnyFamily) -> tuple[str, ...]:
        """The metrics of these predictions, in table order."""
        classes = () if self.class_logits is None else METRICS_BY_CLASSES[self.class_logits.shape[-1]]
        return family_metrics(family) + classes

    def metrics(self, family: AnyFamily) -> dict[str, NDArray[np.float64]]:
        """Score every cell of the grid; per metric an (S, M, R) array."""
        shape = self.scores.shape[:3]
        scored = {name: np.empty(shape) for name in self.metric_names(family)}
        for cell in np.ndindex(*shape):
            row = regression_metrics(self.scores[cell], self.labels, family)
            if self.class_logits is not None:
                row |= class_metrics(self.class_logits[cell], self.labels, family)
            for name, value in row.items():
                scored[name][cell] = value
        return scored

    def resampled(self, family: AnyFamily, counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Score every resample; per metric a (R, resamples) array, averaged over training and mask seeds."""
        sums = {name: np.zeros((len(self.rates), len(counts))) for name in self.metric_names(family)}
        shape = self.scores.shape[:3]
        for cell in np.ndindex(*shape):
            logits = None if self.class_logits is None else self.class_logits[cell]
            drawn = resampled_metrics(self.scores[cell], self.labels, family, counts, logits)
            for name, values in drawn.items():
                sums[name][cell[2]] += values / (shape[0] * shape[1])
        return sums


def _class_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of class logits that a table has, in the order of the classes; none for models without them."""
    # Classes of other numbers have some names in common with these.
    found = {name for name in columns if name.startswith("class_logits_")}
    return next((names for names in (SCALE_COLUMNS, CLASS_COLUMNS) if set(names) == found), ())


def _check_columns(table: "pa.Table", names: Iterable[str]) -> None:
    """Check the types of columns, and that nothing is absent but seeds that are unknown.

    Raises:
        MsaError: Naming the column.
    """
    import pyarrow.types

    for name in names:
        column, kinds = table.column(name), _COLUMN_TYPES.get(name, _NUMBERS)
        is_kind = any(getattr(pyarrow.types, f"is_{kind}")(column.type) for kind in kinds)
        if not is_kind or (column.null_count and "null" not in kinds):
            raise MsaError(
                f"The prediction table's column {name!r} is of type {column.type} with {column.null_count} empty values; it "
                f"must be {' or '.join(kinds)}, and complete: evaluate the model again."
            )


def _encode(table: "pa.Table", column: str) -> tuple[list[Any], NDArray[np.int64]]:
    """The distinct values of a column, numbers in ascending order, and each row's index into them."""
    import pyarrow.compute as pc

    encoded = pc.dictionary_encode(table.column(column).combine_chunks(), null_encoding="encode")
    values = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy().astype(np.int64)
    if column == "id" or any(value is None or isinstance(value, str) for value in values):
        return values, codes
    order = sorted(range(len(values)), key=values.__getitem__)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return [values[index] for index in order], rank[codes]


def protocol_facts(tested: Sequence[Condition]) -> dict[str, Any]:
    """What the conditions of one test share, as results say it: the protocol's name and its fields but rate, seed, pattern.

    Args:
        tested: See `hf_msa.data.missing.conditions`.
    """
    values = tested[0].protocol.to_dict()
    return {name: value for name, value in values.items() if name not in ("rate", "seed", "available")}


def predictions_table(parts: Iterable[Mapping[str, Any]]) -> "pa.Table":
    """Put the predictions of several passes into one table.

    Args:
        parts: One mapping per pass over the data: ``id``, ``prediction`` and ``label`` of N values each;
            ``training_seed``, ``mask_seed`` and ``rate`` as single values; any further column as N values or one.

    Returns:
        The table, in the order of the parts.

    Raises:
        MsaError: If there are no parts or a part's columns differ in length.
    """
    import pyarrow as pa

    types = {
        "id": pa.string(),
        "training_seed": pa.int64(),
        "mask_seed": pa.int64(),
        "prediction": pa.float32(),
        "label": pa.float32(),
    }
    tables = []
    parts = list(parts)
    if not any(isinstance(part.get("rate"), str) for part in parts):
        types["rate"] = pa.float64()
    for part in parts:
        rows = len(part["id"])
        columns = {}
        for name, values in part.items():
            if np.ndim(values) == 0:
                values = [values] * rows
            if len(values) != rows:
                raise MsaError(f"The prediction column {name!r} has {len(values)} values for {rows} ids.")
            columns[name] = pa.array(values, type=types.get(name))
        tables.append(pa.table(columns))
    if not tables:
        raise MsaError("There are no predictions to write; evaluate at least one rate.")
    return pa.concat_tables(tables)


@dataclass
class EvaluationFacts:
    """What a result says beside its numbers.

    Attributes:
        method: E.g. ``"tcmr"``.
        dataset: ``name``, ``split`` and ``label_family`` at least; ``n`` and ``fingerprint`` come from the rows. Where
            they are not the whole split, ``subset`` says which part: its ``name``, the ``rule`` and the split's size
            ``n_of``.
        protocol: ``name`` and the protocol's own settings; ``rates`` and ``mask_seeds`` come from the predictions.
        ablation: The ablation's name, if any.
        model: Where the checkpoint came from.
        recipe: The recipe it was trained by.
        train_rate: The one missing rate it was trained at; ``"match"`` where each rate is that of models trained at it;
            None where the recipe says what was missing in training.
        trained_on: The name of the data set it was trained on, where that is known.
        oracle: Whether the model saw what a user does not have (test labels, at prediction or in selection).
        realised: Share of dropped positions per modality, by (mask seed, rate).
        selection: How each training seed's checkpoint was chosen.
        versions: Package versions.
        config: The model's config; of several training seeds that of the last.
        changes: What of it was changed for the evaluation (``--set``).
        language_model_input: What a language model was given, one of `LANGUAGE_MODEL_INPUTS`; None for a model that asks
            none.
        media: Number of ``clips``, and of those ``without_file``; None where no recordings were given.
        cost: What the predictions have cost, see `MsaPreTrainedModel.cost_of`; None for a model that asks no other one.
        seconds: How long the evaluation took.
        foreign: Name of the file that the predictions were read from, where another program made them; None for our own.
    """

    method: str
    dataset: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    ablation: str | None = None
    model: str | None = None
    recipe: str | None = None
    train_rate: float | str | None = None
    trained_on: str | None = None
    oracle: bool = False
    realised: dict[tuple[int | None, Rate], Mapping[str, float]] = field(default_factory=dict)
    selection: list[Mapping[str, Any]] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    language_model_input: str | None = None
    media: Mapping[str, int] | None = None
    cost: Mapping[str, Any] | None = None
    seconds: float | None = None
    foreign: str | None = None

    @classmethod
    def of_runs(cls, runs: Sequence[Mapping[str, Any]], names: Sequence[str], *, matched: bool) -> Self:
        """What the runs of one experiment say of themselves.

        Args:
            runs: The run.json of each checkpoint; empty where there is none.
            names: Folders or Hub names of the checkpoints.
            matched: Whether each was trained at the missing rate that it is tested at.
        """
        first = runs[0]
        return cls(
            method=str(first.get("method", "")),
            ablation=first.get("ablation"),
            model=Path(names[0]).name if Path(names[0]).is_dir() else names[0],
            recipe=first.get("recipe"),
            train_rate="match" if matched else first.get("train_rate"),
            trained_on=trained_on(first),
            selection=[
                {
                    "training_seed": run["seed"],
                    **({"train_rate": run["train_rate"]} if matched else {}),
                    **run["selection"],
                }
                for run in runs
                if run
            ],
            versions=first.get("versions") or {},
        )


def trained_on(run: Mapping[str, Any]) -> str | None:
    """The name of the data set that a model was trained on, by its run.json, where it is known."""
    name = (run.get("dataset") or {}).get("name")
    return None if name is None else str(name)


def build_results(
    predictions: "pa.Table", facts: EvaluationFacts, *, resamples: int = RESAMPLES, bootstrap_seed: int = 0
) -> Results:
    """Score a prediction table.

    Each number comes with its mean and standard deviation over training seeds (mask seeds are averaged first) and a
    percentile bootstrap interval over samples: one resample draws the same rows for every rate and seed, the metric is
    averaged over them, and the interval covers 95 % of these averages. An undefined metric is None, never a stand-in.

    Args:
        predictions: See the module's description, and `predictions_table`.
        facts: What the result says beside its numbers.
        resamples: Bootstrap resamples.
        bootstrap_seed: The same seed draws the same rows, whatever the method.

    Raises:
        MsaError: If the table is no full grid, the facts of the data set or the protocol lack a key, or the label family is
            unknown.
    """
    for what, mapping, keys in (
        ("dataset", facts.dataset, ("name", "split", "label_family")),
        ("protocol", facts.protocol, ("name",)),
    ):
        absent = [key for key in keys if key not in mapping]
        if absent:
            raise MsaError(f"The {what} facts of a result lack {absent[0]!r}; they need {', '.join(keys)}.")
    grid = Predictions.from_table(predictions)
    family = find_label_family(facts.dataset["label_family"])
    values = grid.metrics(family)
    drawn = grid.resampled(family, resample_counts(len(grid.ids), resamples, bootstrap_seed))
    runs = [
        {
            "training_seed": training_seed,
            "mask_seed": mask_seed,
            "rate": rate,
            "metrics": {name: array[s, m, r] for name, array in values.items()},
            "realised": facts.realised.get((mask_seed, rate), {}),
        }
        for s, training_seed in enumerate(grid.training_seeds)
        for m, mask_seed in enumerate(grid.mask_seeds)
        for r, rate in enumerate(grid.rates)
    ]
    results = {
        "schema_version": SCHEMA_VERSION,
        **{name: value for name, value in vars(facts).items() if name != "realised"},
        "dataset": {**facts.dataset, "n": len(grid.ids), "fingerprint": grid.fingerprint},
        "protocol": {**facts.protocol, "rates": grid.rates, "mask_seeds": grid.mask_seeds},
        "runs": runs,
        "per_rate": [
            {
                "rate": rate,
                "metrics": {
                    name: _estimate(array[:, :, r].mean(axis=1), drawn[name][r]) for name, array in values.items()
                },
            }
            for r, rate in enumerate(grid.rates)
        ],
        "mean_over_rates": {
            name: _estimate(array.mean(axis=(1, 2)), drawn[name].mean(axis=0)) for name, array in values.items()
        },
        "bootstrap": {"resamples": resamples, "seed": bootstrap_seed, "confidence": CONFIDENCE},
    }
    content = dict(plain(results))
    validate_results(content, "the new result")
    return content


def _estimate(per_seed: NDArray[np.float64], resampled: NDArray[np.float64]) -> dict[str, float | int]:
    mean, std = mean_and_std(per_seed.tolist())
    low, high = confidence_interval(resampled)
    return {"mean": mean, "std": std, "n": len(per_seed), "ci_low": low, "ci_high": high}


def plain(value: Any) -> Any:
    """Turn numpy values, tuples and paths into what JSON has; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def write_results(folder: str | os.PathLike[str], results: Results, predictions: "pa.Table | None" = None) -> Path:
    """Write a result into a folder: the predictions first, so that a ``results.json`` means that all is there.

    Args:
        folder: Created where absent.
        results: From `build_results`.
        predictions: The table the result was made from.

    Returns:
        The path of ``results.json``.
    """
    target = Path(folder)
    if predictions is not None:
        import pyarrow.parquet as pq

        with atomic_write(target / PREDICTIONS_FILE) as temporary:
            pq.write_table(predictions, temporary)
        results = {**results, PREDICTIONS_DIGEST: _digest(target / PREDICTIONS_FILE)}
    write_json(target / RESULTS_FILE, plain(results))
    return target / RESULTS_FILE


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read and check a result.

    Args:
        path: A ``results.json``, or the folder that holds one.

    Raises:
        MsaError: If there is none, it is no JSON, or it is not of the schema that this version reads.
    """
    file = Path(path)
    file = file / RESULTS_FILE if file.is_dir() else file
    if not file.is_file():
        raise MsaError(
            f"There is no result at {os.fspath(path)}; `hf-msa evaluate` writes {RESULTS_FILE} into its output."
        )
    try:
        # No version writes NaN or infinities; what others made of undefined numbers is undefined.
        results = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda constant: None)
    except (ValueError, RecursionError) as error:
        raise MsaError(f"{file} is not a JSON file ({reason(error)}); evaluate the model again.") from error
    validate_results(results, os.fspath(file))
    return _upgraded(results)


def read_predictions(folder: str | os.PathLike[str], results: Results | None = None) -> Predictions:
    """Read the predictions beside a result.

    Args:
        folder: The folder that holds ``predictions.parquet``, or a file in it.
        results: The result; the predictions then have to be those that it was made from.

    Raises:
        MsaError: If there are none, they are no full grid, or those of another result.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder)
    file = (path if path.is_dir() else path.parent) / PREDICTIONS_FILE
    if not file.is_file():
        raise MsaError(f"There are no predictions at {file}; evaluate the model again to write them.")
    try:
        columns = [*PREDICTION_COLUMNS, *_class_columns(pq.read_schema(file).names)]
        table = pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise MsaError(f"{file} cannot be read as a prediction table; evaluate the model again.") from error
    grid = Predictions.from_table(table)
    if results is not None and not (
        results.get(PREDICTIONS_DIGEST) in (None, _digest(file))
        and results["dataset"]["fingerprint"] == grid.fingerprint
        and _has_means_of(results, grid)
    ):
        raise MsaError(
            f"{file} does not hold the predictions that the {RESULTS_FILE} beside it was made from; evaluate the model "
            "again."
        )
    return grid


def _has_means_of(results: Results, grid: Predictions) -> bool:
    """Whether the means of a result are those of a grid, as far as both have them."""
    means = {
        name: values.mean(axis=(1, 2)).mean()
        for name, values in grid.metrics(find_label_family(results["dataset"]["label_family"])).items()
    }
    stored = {name: estimate["mean"] for name, estimate in results["mean_over_rates"].items() if name in means}
    return all(
        math.isnan(means[name]) if mean is None else math.isclose(means[name], mean, rel_tol=1e-6, abs_tol=1e-9)
        for name, mean in stored.items()
    )


def _upgraded(results: Mapping[str, Any]) -> Results:
    """A valid result of any version that is read, as this version writes it."""
    upgraded = dict(results)
    if upgraded["schema_version"] == 1:
        upgraded["language_model_input"] = upgraded.pop("expert_input", None)
    return {**upgraded, "schema_version": SCHEMA_VERSION}


def result_metrics(results: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics that a result holds, in table order; those that this version does not know are left out.

    Args:
        results: The content of ``results.json``.
    """
    order = dict.fromkeys((*family_metrics(results["dataset"]["label_family"]), *METRICS))
    return tuple(name for name in order if name in results["mean_over_rates"])


def validate_results(results: Any, where: str) -> None:
    """Check that a value is a result of the schema that this version reads.

    Args:
        results: Parsed JSON.
        where: What the message calls it.

    Raises:
        MsaError: One sentence naming the first thing that is wrong.
    """
    if not isinstance(results, Mapping) or "schema_version" not in results:
        raise MsaError(f"{where} is not a result of `hf-msa evaluate`: it has no schema_version.")
    if results["schema_version"] not in range(1, SCHEMA_VERSION + 1):
        raise MsaError(
            f"{where} has the schema_version {_shown(results['schema_version'])}, and this version of hf_msa reads up to "
            f"{SCHEMA_VERSION}; use the version that wrote it, or evaluate the model again."
        )
    for key, kind in _REQUIRED.items():
        if key not in results or not isinstance(results[key], kind):
            raise MsaError(
                f"{where} is damaged: its {key!r} is absent or of the wrong type; evaluate the model again."
            )
    for section, keys in (
        ("dataset", ("name", "split", "n", "label_family", "fingerprint")),
        ("protocol", ("name", "rates", "mask_seeds")),
        ("bootstrap", ("resamples", "seed", "confidence")),
    ):
        absent = [key for key in keys if key not in results[section]]
        if absent:
            raise MsaError(f"{where} is damaged: its {section!r} lacks {absent[0]!r}; evaluate the model again.")
    subset = results["dataset"].get("subset")
    if subset is not None and not (isinstance(subset, Mapping) and {"name", "rule", "n_of"} <= set(subset)):
        raise MsaError(f"{where} is damaged: its 'subset' lacks a name, rule or size; evaluate the model again.")
    _check_values(_facts(results), where)
    # A name, or what a data set says of its own; never a file, which is another machine's.
    family = results["dataset"]["label_family"]
    if isinstance(family, str) and family not in LABEL_FAMILIES:
        raise MsaError(f"{where}: {unknown_name('label family', family, LABEL_FAMILIES)}")
    try:
        names = result_metrics(results)
    except MsaError as error:
        raise MsaError(f"{where} is damaged: {error}") from error
    if not names:
        raise MsaError(f"{where} is damaged: it holds no metric that is known; evaluate the model again.")
    blocks = {"mean_over_rates": results["mean_over_rates"]}
    for entry in results["per_rate"]:
        blocks[f"per_rate {entry['rate']!r}"] = entry.get("metrics")
    for place, block in blocks.items():
        for name in names:
            estimate = block.get(name) if isinstance(block, Mapping) else None
            if not isinstance(estimate, Mapping) or not set(estimate) >= _ESTIMATE_KEYS:
                raise MsaError(f"{where} is damaged: {place} lacks the metric {name!r}; evaluate the model again.")
            _check_values(((f"{place} {name}", is_number, estimate[key]) for key in _ESTIMATE_KEYS), where)
            _check_values([(f"{place} {name} n", _is_count, estimate["n"])], where)
    metrics = ((run["metrics"], name) for run in results["runs"] for name in names)
    _check_values(((f"runs {name}", is_number, values.get(name)) for values, name in metrics), where)
    if [entry["rate"] for entry in results["per_rate"]] != list(results["protocol"]["rates"]):
        raise MsaError(f"{where} is damaged: its 'per_rate' is not of its protocol's rates; evaluate the model again.")


_Check = tuple[str, Callable[[Any], bool], Any]
"""A place in a result, what has to be true of its value, and the value."""


def _check_values(checks: Iterable[_Check], where: str) -> None:
    for place, holds, value in checks:
        if not holds(value):
            raise MsaError(f"{where} is damaged: its {place} is {_shown(value)}; evaluate the model again.")


def _shown(value: Any) -> str:
    """A value for a message: what is long by its type."""
    return repr(value) if len(repr(value)) < 50 else f"a {type(value).__name__}"


def _facts(results: Mapping[str, Any]) -> Iterator[_Check]:
    """What has to be true of everything but the numbers; absent keys that older versions lack are None."""
    dataset, protocol, bootstrap = (results[section] for section in ("dataset", "protocol", "bootstrap"))
    for key in ("name", "split", "fingerprint"):
        yield f"dataset {key}", _is_text, dataset[key]
    yield "dataset n", _is_count, dataset["n"]
    yield "dataset label_family", lambda value: isinstance(value, str | Mapping), dataset["label_family"]
    if dataset.get("subset") is not None:
        yield from ((f"subset {key}", _is_text, dataset["subset"][key]) for key in ("name", "rule"))
        yield "subset n_of", _is_count, dataset["subset"]["n_of"]
    yield "protocol name", _is_text, protocol["name"]
    for key, holds in (("rates", _is_rate), ("mask_seeds", _is_seed)):
        yield f"protocol {key}", lambda value: isinstance(value, list) and value != [], protocol[key]
        yield from ((f"protocol {key}", holds, value) for value in protocol[key])
    yield "bootstrap resamples", lambda value: _is_count(value) and value <= _MOST_RESAMPLES, bootstrap["resamples"]
    yield "bootstrap seed", _is_index, bootstrap["seed"]
    yield "bootstrap confidence", lambda value: is_number(value) and value is not None, bootstrap["confidence"]
    for section in ("runs", "per_rate", "selection"):
        yield from ((section, lambda value: isinstance(value, Mapping), value) for value in results[section])
    for entry in (*results["runs"], *results["per_rate"]):
        yield "rate", _is_rate, entry.get("rate")
    for run in results["runs"]:
        yield "runs metrics", lambda value: isinstance(value, Mapping), run.get("metrics")
        yield from ((f"runs {key}", _is_seed, run.get(key, "absent")) for key in ("training_seed", "mask_seed"))
    yield "train_rate", lambda value: value is None or _is_rate(value), results.get("train_rate")
    for key in ("trained_on", "language_model_input", "expert_input", "foreign", PREDICTIONS_DIGEST):
        yield key, lambda value: value is None or _is_text(value), results.get(key)
    yield "changes", lambda value: value is None or isinstance(value, Mapping), results.get("changes")
    cost = results.get("cost")
    yield "cost", lambda value: value is None or isinstance(value, Mapping), cost
    if cost is not None:
        yield from (
            (f"cost {key}", lambda value: is_number(value) and value is not None, cost.get(key)) for key in COSTS
        )
        yield from ((f"cost {key}", is_number, cost.get(key)) for key in ("prompt_tokens", "remembered", "unreadable"))
        yield "cost routes", lambda value: isinstance(value, Mapping), cost.get("routes")
        shares = cost["routes"].values()
        yield from (("cost routes", lambda value: is_number(value) and value is not None, share) for share in shares)
    media = results.get("media")
    yield "media", lambda value: value is None or isinstance(value, Mapping), media
    if media is not None:
        yield from ((f"media {key}", _is_index, media.get(key)) for key in _MEDIA_KEYS)


def is_number(value: Any) -> bool:
    """Whether a value of a result is a finite number, or None for one that is undefined."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_count(value: Any) -> bool:
    return _is_index(value) and value > 0


def _is_rate(value: Any) -> bool:
    return isinstance(value, str) or (value is not None and is_number(value))


def _is_seed(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)
