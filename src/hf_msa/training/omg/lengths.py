"""How long a missing modality is expected to be, of the lengths of observed ones: lines fitted to the training split.

Where sound and pictures have one rate each, or are aligned to words, a line is exact; else it is nearer than the median.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import PRESENCE, TEXT
from hf_msa.models.configuration_omg import OmgConfig

_FEWEST = 10


def fit_lengths(rows: MsaRows, config: OmgConfig) -> dict[str, list[list[Any]]]:
    """Fit the length of each modality to that of each other one, over rows that have both.

    Args:
        rows: Training rows.
        config: Says which modalities there are, and their longest lengths.

    Returns:
        Modality -> lists of another modality, slope and intercept, as in `OmgConfig.missing_length_fits`; left out are
        those that are no nearer to the true lengths than the median is, and those of few rows.
    """
    lengths = {
        name: np.minimum(rows.lengths[name], getattr(config, f"{name}_max_length")) for name in config.modalities
    }
    there = _presence(rows, config)
    found: dict[str, list[list[Any]]] = {}
    for name in config.modalities:
        fits = []
        for other in config.modalities:
            both = there[name] & there[other]
            y, x = lengths[name][both].astype(np.float64), lengths[other][both].astype(np.float64)
            if other == name or len(x) < _FEWEST or not x.std() > 0:
                continue
            slope = float(np.mean((x - x.mean()) * (y - y.mean())) / x.var())
            intercept = float(y.mean() - slope * x.mean())
            error = float(np.abs(slope * x + intercept - y).mean())
            if error < np.abs(np.median(y) - y).mean():
                fits.append((error, [other, slope, intercept]))
        if fits:
            found[name] = [fit for _, fit in sorted(fits, key=lambda one: one[0])]
    return found


def _presence(rows: MsaRows, config: OmgConfig) -> dict[str, NDArray[np.bool_]]:
    """Whether each row has each modality `(rows,)`."""
    flags: dict[str, list[bool]] = {name: [] for name in config.modalities}
    for members in rows.batches():
        for row, name in ((row, name) for row in members for name in flags):
            flags[name].append(bool(row[TEXT].strip()) if name == TEXT else bool(row.get(PRESENCE[name], True)))
    return {name: np.array(values) for name, values in flags.items()}
