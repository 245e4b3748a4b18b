"""Columns of the predictions of evaluated runs: every number that a model said of each sample of the complete data."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_msa.analysis.estimates import Floats
from hf_msa.errors import MsaError
from hf_msa.evaluation.report import distinct_names, split_text
from hf_msa.evaluation.results import PREDICTION_COLUMNS, PREDICTIONS_FILE, Predictions, Results, read_results
from hf_msa.label_families import find_label_family
from hf_msa.models.msa_label_families import LabelFamily

OWN, TRIVIAL, EXPERT = "own", "trivial", "expert"
"""Whose uncertainty: the model's, minus the size of its score, and that of the expert which it hands samples to."""


@dataclass(frozen=True)
class SampleNumbers:
    """The numbers of one evaluated run on complete data.

    Attributes:
        run: Where the result is.
        results: Its content.
        ids: The N sample ids, sorted.
        labels: Their labels (N,).
        seeds: The S training seeds.
        columns: Per column of the predictions, `prediction` included, (S, N); NaN where a sample has none.
    """

    run: str
    results: Results
    ids: tuple[str, ...]
    labels: Floats
    seeds: tuple[int | None, ...]
    columns: dict[str, Floats]

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        path = Path(self.run)
        return path if path.is_dir() else path.parent

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's configuration; its thresholds are those of the last seed."""
        return dict(self.results["config"])

    @property
    def family(self) -> LabelFamily:
        """The label family."""
        return find_label_family(self.results["dataset"]["label_family"])

    @property
    def data_text(self) -> str:
        """Which data it is of, as summaries say it."""
        return f"{self.results['dataset']['name']}, {split_text(self.results)}, complete data"

    def require(self, *names: str, method: str) -> None:
        """Check that there are columns that only one method's predictions have.

        Raises:
            MsaError: Naming the first that is absent.
        """
        absent = next((name for name in names if name not in self.columns), None)
        if absent is not None:
            raise MsaError(
                f"The predictions of {self.run} have no column {absent!r}; give an evaluated run of {method!r}."
            )


def read_numbers(run: str) -> SampleNumbers:
    """Read the predictions beside a result, on complete data.

    Raises:
        MsaError: If there is no result, no predictions, or none of complete data.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found = SampleNumbers(run, read_results(run), (), np.zeros(0), (), {})
    file = found.folder / PREDICTIONS_FILE
    if not file.is_file():
        raise MsaError(f"There are no predictions at {file}; evaluate the model again to write them.")
    table = pq.read_table(file)
    rates = table.column("rate").unique().to_pylist()
    if 0.0 not in rates:
        raise MsaError(
            f"{run} was not evaluated on complete data (its rates are {', '.join(map(str, rates))}); evaluate it with "
            "--protocol complete."
        )
    table = table.filter(pc.equal(table.column("rate"), 0.0))
    names = [
        field.name
        for field in table.schema
        if field.name == "prediction" or (field.name not in PREDICTION_COLUMNS and pa.types.is_floating(field.type))
    ]
    key = [name for name in PREDICTION_COLUMNS if name != "prediction"]
    # Nothing is missing, so the masks of all mask seeds are the same, and the first stands for all.
    grids = {
        name: Predictions.from_table(table.select([*key, name]).rename_columns([*key, "prediction"])) for name in names
    }
    grid = grids["prediction"]
    columns = {name: of.scores[:, 0, 0].astype(np.float64) for name, of in grids.items()}
    return dataclasses.replace(
        found, ids=grid.ids, labels=grid.labels.astype(np.float64), seeds=grid.training_seeds, columns=columns
    )


def read_named_numbers(runs: Sequence[str]) -> dict[str, SampleNumbers]:
    """`read_numbers` of several runs, by names that tell them apart."""
    found = [read_numbers(run) for run in runs]
    return dict(zip(distinct_names(runs, [numbers.results for numbers in found]), found, strict=True))


def check_same_samples(runs: Sequence[SampleNumbers]) -> None:
    """Check that runs were evaluated on the same samples.

    Raises:
        MsaError: Naming the first that was not.
    """
    for other in runs[1:]:
        if other.ids != runs[0].ids or (other.labels != runs[0].labels).any():
            raise MsaError(
                f"{runs[0].run} and {other.run} were evaluated on different samples; give runs of one data set and split."
            )


@dataclass(frozen=True)
class Uncertainty:
    """One kind of uncertainty of one model of a run.

    Attributes:
        whose: `OWN`, `TRIVIAL` or `EXPERT`.
        name: What tables call it.
        scores: What it is the uncertainty of (S, N).
        values: The uncertainties (S, N); not finite where the model was not asked or its answer could not be read.
    """

    whose: str
    name: str
    scores: Floats
    values: Floats


def uncertainties(numbers: SampleNumbers) -> list[Uncertainty]:
    """What a run says of its own certainty, and beside it the trivial guess that a score near zero is uncertain.

    In a cascade these are the small model's, for all samples, and then the expert's, where it answered.
    """
    columns = numbers.columns
    cascade = "small_score" in columns
    scores = columns["small_score" if cascade else "prediction"]
    who = "small model, " if cascade else ""
    kind = numbers.config.get("uncertainty_kind", "uncertainty")
    found = []
    if "uncertainty" in columns and kind != "score":
        found.append(Uncertainty(OWN, who + str(kind).replace("_", "-"), scores, columns["uncertainty"]))
    found.append(Uncertainty(TRIVIAL, who + "-|score|", scores, -np.abs(scores)))
    if cascade and np.isfinite(columns["expert_uncertainty"]).any():
        expert = columns["expert_score"], columns["expert_uncertainty"]
        found.append(Uncertainty(EXPERT, "expert, token entropy", *expert))
    return found
