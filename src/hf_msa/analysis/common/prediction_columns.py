"""What the tools of uncertainty read: every number that a model said of each sample of a complete evaluation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.errors import MsaError
from hf_msa.evaluation.results import PREDICTION_COLUMNS, PREDICTIONS_FILE, Predictions, Results, read_results
from hf_msa.evaluation.uncertainty import AgreementFit, fit_agreement

Floats = NDArray[np.float64]

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
    def config(self) -> Mapping[str, Any]:
        """The model's configuration; its thresholds are those of the last seed, see `seed_configs`."""
        return dict(self.results["config"])

    @property
    def family(self) -> str:
        """The label family."""
        return str(self.results["dataset"]["label_family"])

    def require(self, *names: str, method: str) -> None:
        """Check that there are columns that only one method's predictions have.

        Raises:
            MsaError: Naming the first that is absent.
        """
        absent = [name for name in names if name not in self.columns]
        if absent:
            raise MsaError(
                f"The predictions of {self.run} have no column {absent[0]!r}; give an evaluated run of {method!r}."
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


def read_numbers(run: str) -> SampleNumbers:
    """Read the predictions beside a result, on complete data.

    Args:
        run: Folder with a ``results.json`` and its predictions.

    Raises:
        MsaError: If there is no result, no predictions, or none of complete data.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    results = read_results(run)
    path = Path(run)
    file = (path if path.is_dir() else path.parent) / PREDICTIONS_FILE
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
    columns = {}
    for name in names:
        grid = Predictions.from_table(
            table.select([*key, name]).rename_columns([*key, "prediction"]) if name != "prediction" else table
        )
        # Nothing is missing, so the masks of all mask seeds are the same.
        columns[name] = grid.scores[:, 0, 0].astype(np.float64)
    return SampleNumbers(run, results, grid.ids, grid.labels.astype(np.float64), grid.training_seeds, columns)


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
        found.append(
            Uncertainty(EXPERT, "expert, token entropy", columns["expert_score"], columns["expert_uncertainty"])
        )
    return found


def seed_configs(numbers: SampleNumbers) -> list[Mapping[str, Any]]:
    """The configuration of each seed's checkpoint, in which its thresholds are; empty where it is not to be found."""
    folder = Path(numbers.run)
    folder = folder if folder.is_dir() else folder.parent
    found: list[Mapping[str, Any]] = []
    for seed in numbers.seeds:
        # Results may lie in a folder of the run's.
        places = [place / f"seed-{seed}" / "config.json" for place in (folder, folder.parent)]
        file = next((place for place in places if place.is_file()), None)
        if file is not None:
            found.append(json.loads(file.read_text(encoding="utf-8")))
        else:
            found.append(numbers.config if len(numbers.seeds) == 1 else {})
    return found


@dataclass(frozen=True)
class Calibration:
    """The threshold of one uncertainty of one seed.

    Attributes:
        fit: What it was made from, on validation; None where that was not kept.
        tau: The threshold; None where there is none.
    """

    fit: AgreementFit | None
    tau: float | None


def calibrations(numbers: SampleNumbers, validation: SampleNumbers | None) -> dict[str, list[Calibration]]:
    """Thresholds per kind of uncertainty (by `Uncertainty.whose`) and seed; never from the samples that are looked at.

    Args:
        numbers: The run.
        validation: The same run on the validation split; without it the thresholds in the checkpoints' configurations
            are all that is known.

    Raises:
        MsaError: If `validation` is of another split, or of other seeds.
    """
    configs = seed_configs(numbers)
    if validation is None:
        found: dict[str, list[Calibration]] = {}
        whose_small = TRIVIAL if numbers.config.get("uncertainty_kind") == "score" else OWN
        for whose, name, field in ((whose_small, "small", "tau_1"), (EXPERT, "expert", "tau_2")):
            fits = [(config.get("calibration") or {}).get(name) for config in configs]
            found[whose] = [
                Calibration(None if fit is None else AgreementFit.from_dict(fit), config.get(field))
                for fit, config in zip(fits, configs, strict=True)
            ]
        return found
    if validation.results["dataset"]["split"] != "validation":
        raise MsaError(
            f"{validation.run} is a result on the {validation.results['dataset']['split']} split, but thresholds come from "
            "validation; evaluate the run with --split validation --output FOLDER and give that folder."
        )
    if validation.seeds != numbers.seeds:
        raise MsaError(
            f"{validation.run} and {numbers.run} are of different training seeds; evaluate the same run on both splits."
        )
    config = configs[0] or numbers.config
    weight, shift = config.get("threshold_lambda", 0.5), config.get("threshold_beta", 0.0)
    found = {}
    for kind in uncertainties(validation):
        fits_ = [
            fit_agreement(scores, validation.labels, values)
            for scores, values in zip(kind.scores, kind.values, strict=True)
        ]
        found[kind.whose] = [Calibration(fit, fit.tau(weight, shift)) for fit in fits_]
    return found
