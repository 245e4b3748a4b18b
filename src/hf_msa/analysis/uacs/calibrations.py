"""Calibrations of U-ACS and UBM: the thresholds of a run's uncertainties, and the fits behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_msa.analysis.common.prediction_columns import EXPERT, OWN, TRIVIAL, SampleNumbers, uncertainties
from hf_msa.errors import MsaError
from hf_msa.methods import METHODS
from hf_msa.training.uacs.thresholds import AgreementFit, fit_agreement


@dataclass(frozen=True)
class Calibration:
    """The threshold of one uncertainty of one seed.

    Attributes:
        fit: What it was made from, on validation; None where that was not kept.
        tau: The threshold; None where there is none.
    """

    fit: AgreementFit | None
    tau: float | None


def seed_folders(numbers: SampleNumbers) -> list[Path | None]:
    """The folder of each seed's checkpoint; None where there is none."""
    found = []
    for seed in numbers.seeds:
        # Results may lie in a folder of the run's.
        places = [place / f"seed-{seed}" for place in (numbers.folder, numbers.folder.parent)]
        found.append(next((place for place in places if (place / "config.json").is_file()), None))
    return found


def seed_configs(numbers: SampleNumbers) -> list[Mapping[str, Any]]:
    """The configuration that each seed was evaluated with, thresholds included; empty where there is no checkpoint."""
    config_class = METHODS.find(numbers.results["method"]).config_class
    found: list[Mapping[str, Any]] = []
    for folder in seed_folders(numbers):
        if len(numbers.seeds) == 1:
            found.append(numbers.config)
        elif folder is not None:
            changes = dict(numbers.results.get("changes") or {})
            found.append(config_class.from_pretrained(folder, **changes).to_dict())
        else:
            found.append({})
    return found


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
        whose_small = TRIVIAL if numbers.config.get("uncertainty_kind") == "score" else OWN
        return {
            whose: [_saved(config, name, field) for config in configs]
            for whose, name, field in ((whose_small, "small", "tau_1"), (EXPERT, "expert", "tau_2"))
        }
    split = validation.results["dataset"]["split"]
    if split != "validation":
        raise MsaError(
            f"{validation.run} is a result on the {split} split, but thresholds come from validation; evaluate the run with "
            "--split validation --output FOLDER and give that folder."
        )
    if validation.seeds != numbers.seeds:
        raise MsaError(
            f"{validation.run} and {numbers.run} are of different training seeds; evaluate the same run on both splits."
        )
    config = configs[0] or numbers.config
    weight, shift = config.get("threshold_lambda", 0.5), config.get("threshold_beta", 0.0)
    found = {}
    for kind in uncertainties(validation):
        pairs = zip(kind.scores, kind.values, strict=True)
        fits = [fit_agreement(scores, validation.labels, values, validation.family) for scores, values in pairs]
        found[kind.whose] = [Calibration(fit, fit.tau(weight, shift)) for fit in fits]
    return found


def _saved(config: Mapping[str, Any], name: str, field: str) -> Calibration:
    """What a checkpoint's configuration says of one threshold."""
    fit = (config.get("calibration") or {}).get(name)
    return Calibration(None if fit is None else AgreementFit.from_dict(fit), config.get(field))
