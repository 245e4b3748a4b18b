"""Evaluation of predictions that were made elsewhere: a table of another program, scored as those of our models are."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_msa.data.loading import dataset_facts, load_split
from hf_msa.data.missing import PROTOCOLS, Rate, conditions
from hf_msa.data.missing_base import check_rate
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, reason
from hf_msa.models.msa_schema import MODALITIES

from .evaluate import Evaluation, check_same_test, write_evaluation
from .results import EvaluationFacts, predictions_table, protocol_facts

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("id", "prediction", "label")
"""The columns that every table of foreign predictions has."""

SETTINGS = ("rate", "pattern")
"""The columns that say what was missing, of which a table has one; without them nothing was."""

_SEEDS = ("training_seed", "mask_seed")
# Labels lose digits on their way through other programs.
_LABEL_TOLERANCE = 1e-3
_RATE_DIGITS = 6


def evaluate_predictions(
    predictions: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    name: str,
    protocol: str | None = None,
    split: str = "test",
    protocol_fields: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score predictions that another program made, so that `compare` puts them beside ours.

    The result is written like that of a model of ours, and is marked as foreign wherever it is shown.

    Args:
        predictions: A Parquet or CSV file with the columns ``id``, ``prediction``, ``label``, and ``rate`` (missing rate) or
            ``pattern`` (the modalities that are there, e.g. ``text+audio``); without either they are of complete data. With
            several training seeds or mask draws also ``training_seed`` and ``mask_seed``, whole numbers.
        data: Folder or Hub name of the prepared data set that they are of.
        output: Folder of the results.
        name: What the method is called in tables.
        protocol: How data were missing, a key of `hf_msa.data.missing.PROTOCOLS`; default: ``"complete"`` where nothing is,
            ``"fixed"`` for patterns. Rates need it.
        split: Of which split they are.
        protocol_fields: The protocol's other fields, e.g. ``{"blocks": 2}``.

    Raises:
        MsaError: If the file cannot be read or lacks a column; if ids are absent, unknown or given twice at a setting; if a
            prediction is no finite number, or a label another one than that of the data.

    Example:
        ```python
        import shutil

        from hf_msa import compare, evaluate_predictions

        shutil.copy("runs/text/predictions.parquet", "theirs.parquet")  # our own, as if they were another program's
        evaluate_predictions("theirs.parquet", "data/sample", "results/theirs", name="theirs", protocol="frame")
        print(compare(["runs/text", "results/theirs"], metrics=["mae"]).to_markdown())
        ```
    """
    started = time.perf_counter()
    table = read_foreign(predictions)
    known = dataset_facts(str(data))
    rows = MsaRows(load_split(str(data), split), split)
    columns = {field: np.array(table[field].to_pylist(), dtype=object) for field in table.column_names}
    _check_ids(columns, rows, str(predictions))
    settings: list[Rate] = list(dict.fromkeys(columns["setting"]))
    protocol = protocol or _own_protocol(settings)
    # Which patterns there are depends on the modalities of the data.
    there = ("text", *(modality for modality in rows.lengths if modality != "text"))
    kind, fields = PROTOCOLS.find(protocol), protocol_fields or {}
    has_rates = bool(kind.RATES)
    rates = sorted(one for one in settings if not isinstance(one, str)) if has_rates else None
    tested = conditions(protocol, there, rates or None, **fields)
    order = [condition.rate for condition in tested]
    for setting in settings:
        if setting not in order:
            raise MsaError(
                f"{str(predictions)!r} has predictions at {setting!r}, and the protocol {protocol!r} tests on this data at "
                f"{', '.join(map(str, order))}; give the protocol that they were made under as --protocol."
            )
    if columns["mask_seed"][0] is None and not has_rates:
        # Nothing is drawn.
        columns["mask_seed"][:] = tested[0].mask_seed
    facts = EvaluationFacts(
        method=name,
        dataset={"name": known.name, "split": split, "label_family": known.family.to_value()},
        protocol=protocol_facts(tested),
        foreign=Path(predictions).name,
    )
    check_same_test(Path(output), facts, settings, set(columns["mask_seed"]))
    facts.seconds = round(time.perf_counter() - started, 2)
    content, files = write_evaluation(Path(output), _prediction_table(columns, rows, order), facts)
    return Evaluation(content, files, [])


def read_foreign(file: str | Path) -> "pa.Table":
    """Read and check a table of foreign predictions by itself.

    Args:
        file: Parquet (``.parquet``) or CSV, see `evaluate_predictions`.

    Returns:
        The columns ``id``, ``prediction``, ``label``, ``setting`` (a rate, or a pattern in the order of the schema),
        ``training_seed`` and ``mask_seed`` (None where they are not known), with as many rows as the file has.

    Raises:
        MsaError: Naming the first thing that is wrong.
    """
    import pyarrow as pa

    path = Path(file)
    table = _read(path)
    given = table.column_names
    twice = [name for name in given if given.count(name) > 1]
    absent = [name for name in COLUMNS if name not in given]
    settings = [name for name in SETTINGS if name in given]
    if absent or twice or len(settings) > 1:
        wrong = (
            f"lacks the column {absent[0]!r}" if absent else f"has the columns {', '.join(twice or settings)} at once"
        )
        raise MsaError(
            f"{str(path)!r} {wrong}; it needs id, prediction and label, and may have rate or pattern, training_seed and "
            "mask_seed, each once."
        )
    if not table.num_rows:
        raise MsaError(f"{str(path)!r} has no rows; give a prediction for each sample.")
    types = {"id": pa.string(), "pattern": pa.string(), **dict.fromkeys(_SEEDS, pa.int64())}
    columns: dict[str, list[Any]] = {}
    for name in (*COLUMNS, *settings, *(seed for seed in _SEEDS if seed in given)):
        try:
            columns[name] = table.column(name).cast(types.get(name, pa.float64())).to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            wanted = "text" if name in ("id", "pattern") else "whole numbers" if name in _SEEDS else "numbers"
            raise MsaError(f"The column {name!r} of {str(path)!r} must hold {wanted} ({reason(error)}).") from error
        for place, value in enumerate(columns[name]):
            if value in (None, "") or (isinstance(value, float) and not np.isfinite(value)):
                of = "" if name == "id" else f" for id {columns['id'][place]!r}"
                raise MsaError(
                    f"The column {name!r} of {str(path)!r} has {'no value' if value in (None, '') else value}{of} in row "
                    f"{place + 1}; give a finite value for each sample, for a mean without it is one of other samples."
                )
    chosen = columns.pop(settings[0]) if settings else [0.0] * table.num_rows
    known: dict[Any, Rate] = {value: _setting(value, path) for value in dict.fromkeys(chosen)}
    columns["setting"] = [known[value] for value in chosen]
    for seed in _SEEDS:
        columns.setdefault(seed, [None] * table.num_rows)
    return pa.table(columns)


def _read(path: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise MsaError(f"There is no file {str(path)!r}; give a Parquet or CSV file of predictions.")
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.ParquetFile(path).read()
        # Ids and patterns are text, whatever they look like.
        text = pyarrow.csv.ConvertOptions(column_types={"id": pa.string(), "pattern": pa.string()})
        return pyarrow.csv.read_csv(path, convert_options=text)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MsaError(
            f"{str(path)!r} cannot be read as a table of predictions ({reason(error)}); give Parquet (.parquet) or CSV."
        ) from error


def _setting(value: float | str, path: Path) -> Rate:
    """A missing rate without the last digits of arithmetic, or a pattern in the order of the schema."""
    if not isinstance(value, str):
        return check_rate(round(value, _RATE_DIGITS))
    names = value.split("+")
    if len(set(names)) != len(names) or not set(names) <= set(MODALITIES):
        raise MsaError(
            f"The pattern {value!r} in {str(path)!r} must name the modalities that are there, each once, of "
            f"{', '.join(MODALITIES)}, e.g. text+audio."
        )
    return "+".join(modality for modality in MODALITIES if modality in names)


def _own_protocol(settings: Sequence[Rate]) -> str:
    if any(isinstance(setting, str) for setting in settings):
        return "fixed"
    if set(settings) == {0.0}:
        return "complete"
    rated = [name for name, kind in PROTOCOLS.items() if kind.RATES]
    raise MsaError(
        f"Predictions at missing rates {', '.join(map(str, sorted(settings)))} say nothing of how data were missing; give "
        f"the protocol as --protocol: {', '.join(rated)}."
    )


def _check_ids(columns: Mapping[str, Any], rows: MsaRows, file: str) -> None:
    """Check that there is one prediction for each row of the data in each cell of the grid, with its label.

    Raises:
        MsaError: Naming the first id that is unknown, given twice, absent or has another label.
    """
    labels = dict(zip(rows.ids, rows.labels.tolist(), strict=True))
    cells: dict[tuple[Any, ...], set[str]] = {}
    for sample, label, *cell in zip(*(columns[name] for name in ("id", "label", "setting", *_SEEDS)), strict=True):
        if sample not in labels:
            raise MsaError(
                f"{file!r} has the id {sample!r}, which is not in the {rows.split} split of the data; give the ids as the "
                f"data has them, e.g. {rows.ids[0]!r}."
            )
        if abs(labels[sample] - label) > _LABEL_TOLERANCE:
            raise MsaError(
                f"{file!r} gives the id {sample!r} the label {label:g}, and the data {labels[sample]:g}; give the labels of "
                "the data, on its scale."
            )
        found = cells.setdefault(tuple(cell), set())
        if sample in found:
            raise MsaError(
                f"{file!r} has the id {sample!r} twice at {_cell_text(cell)}; give one prediction for each."
            )
        found.add(sample)
    seeds = list(dict.fromkeys(cell[1:] for cell in cells))
    for setting in dict.fromkeys(cell[0] for cell in cells):
        for pair in seeds:
            lost = [sample for sample in rows.ids if sample not in cells.get((setting, *pair), ())]
            if lost:
                raise MsaError(
                    f"{file!r} lacks {len(lost)} of the {len(rows.ids)} ids of the {rows.split} split, e.g. {lost[0]!r}, "
                    f"at {_cell_text((setting, *pair))}; give a prediction for each id, at each rate and seed."
                )


def _cell_text(cell: Sequence[Any]) -> str:
    setting, training_seed, mask_seed = cell
    parts = [("training seed", training_seed), ("mask seed", mask_seed)]
    return ", ".join([repr(setting), *(f"{what} {seed}" for what, seed in parts if seed is not None)])


def _prediction_table(columns: Mapping[str, Any], rows: MsaRows, order: Sequence[Rate]) -> "pa.Table":
    """The predictions as our own are written: setting by setting in the protocol's order, with the labels of the data."""
    labels = dict(zip(rows.ids, rows.labels, strict=True))
    parts = []
    for setting in order:
        chosen = np.flatnonzero(columns["setting"] == setting)
        if not len(chosen):
            continue
        ids = columns["id"][chosen].tolist()
        part: dict[str, Any] = {"id": ids, "rate": setting, "label": [labels[sample] for sample in ids]}
        part["prediction"] = columns["prediction"][chosen].astype(np.float32)
        part |= {seed: columns[seed][chosen].tolist() for seed in _SEEDS}
        parts.append(part)
    return predictions_table(parts)
