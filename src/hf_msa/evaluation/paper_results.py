"""The numbers that the papers print, as data: to stand beside ours, with what is known to be wrong in them.

The file ``paper_results.yaml`` keeps the numbers as printed. Here they become fractions where they were percentages,
so that they compare with ``results.json``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hf_msa.errors import MsaError, unknown_name
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.subsets import Subset

PROTOCOLS = ("frame", "modality", "fixed", "complete")
SELECTED_ON = ("validation", "test", "unknown")


@dataclass(frozen=True)
class Erratum:
    """What is wrong, or looks wrong, in a printed row.

    Attributes:
        metrics: The metrics it is about.
        corrected: The right values where they are known, in stored units.
        reason: One sentence.
    """

    metrics: tuple[str, ...]
    corrected: Mapping[str, float]
    reason: str


@dataclass(frozen=True)
class PaperEntry:
    """One printed row, at one rate or averaged over rates.

    Attributes:
        table: Where it stands.
        about: What the table is of.
        dataset: ``"mosi"``, ``"mosei"``, ``"sims"``, ``"simsv2"``, or a transfer such as ``"mosei-to-mosi"``.
        subset: Name and rule of the part of the test split that it is of, see `hf_msa.evaluation.subsets`; None for all.
        method: The method's name as printed.
        variant: An ablation or setting of the paper's own method; None for the method as proposed.
        protocol: The missing-data protocol, named as in `hf_msa.data.missing`.
        at: The missing rate, or the available modalities; None for the mean over `rates`.
        rates: What a mean is over; None where there is nothing to average, as with complete data.
        metrics: Values in stored units (fractions, not percentages); None where nothing is printed.
        selected_on: The split that picked the checkpoint.
        oracle: Whether the model saw labels at prediction time.
        errata: What is wrong with it.
    """

    table: str
    about: str
    dataset: str
    subset: tuple[str, str] | None
    method: str
    variant: str | None
    protocol: str
    at: float | str | None
    rates: tuple[float, ...] | None
    metrics: Mapping[str, float | None]
    selected_on: str
    oracle: bool
    errata: tuple[Erratum, ...]


@dataclass(frozen=True)
class PaperResults:
    """All tables of one paper.

    Attributes:
        key: The method's key, e.g. ``"tcmr"``.
        title: The paper's title.
        source: Where it was published.
        method: The paper's own method, as it prints it.
        entries: Every printed row.
    """

    key: str
    title: str
    source: str
    method: str
    entries: tuple[PaperEntry, ...]

    def headline(
        self,
        dataset: str,
        protocol: str,
        rates: Sequence[float | str],
        subset: tuple[str, str] | None = None,
    ) -> list[PaperEntry]:
        """Return the rows that compare with a mean over `rates`: printed means, or else the mean of printed rates.

        A method that stands in several tables is given once, from the first of them.

        Args:
            dataset: The data set's name.
            protocol: The missing-data protocol's name.
            rates: The rates or patterns that are averaged over.
            subset: Name and rule of a subset of the data set; None for all of it.

        Raises:
            MsaError: If the paper has nothing to compare; the message says what it has.
        """
        fitting = [entry for entry in self.entries if entry.dataset == dataset and entry.protocol == protocol]
        parts = {entry.subset for entry in fitting}
        if fitting and subset not in parts:
            raise MsaError(
                f"The {self.method} paper has no results on {_part_text(subset)} of {dataset!r}; it has them on "
                f"{', '.join(sorted(map(_part_text, parts)))}."
            )
        fitting = [entry for entry in fitting if entry.subset == subset]
        if not fitting:
            has = sorted({f"{entry.dataset} ({entry.protocol})" for entry in self.entries})
            raise MsaError(
                f"The {self.method} paper has no results on {dataset!r} under the protocol {protocol!r}; "
                f"it has {', '.join(has)}."
            )
        wanted = tuple(rates)
        rows = [entry for entry in fitting if entry.at is None and entry.rates in (None, wanted)]
        series: dict[tuple[str, str, str | None], dict[float | str, PaperEntry]] = {}
        for entry in fitting:
            if entry.at is not None:
                series.setdefault((entry.table, entry.method, entry.variant), {})[entry.at] = entry
        complete = [by_rate for by_rate in series.values() if set(wanted) <= set(by_rate)]
        rows += [_average([by_rate[rate] for rate in wanted]) for by_rate in complete]
        if not rows:
            means = next((entry.rates for entry in fitting if entry.rates), None) or sorted(
                {str(entry.at) for entry in fitting}
            )
            raise MsaError(
                f"The {self.method} paper's numbers on {dataset!r} are over {', '.join(map(str, means))} and those of "
                f"the runs over {', '.join(map(str, wanted))}; evaluate the runs at the paper's settings to compare."
            )
        return _first_of_each(rows)

    def by_setting(
        self,
        dataset: str,
        protocol: str,
        settings: Sequence[float | str],
        subset: tuple[str, str] | None = None,
    ) -> dict[float | str, list[PaperEntry]]:
        """Return what is printed of the paper's own method, its ablations included, at single rates or patterns.

        Args:
            dataset: The data set's name.
            protocol: The missing-data protocol's name.
            settings: The rates or patterns.
            subset: Name and rule of a subset of the data set; None for all of it.

        Returns:
            Per setting the rows, each method or ablation once; settings of which nothing is printed are left out.
        """
        fitting = [
            entry
            for entry in self.entries
            if (entry.dataset, entry.protocol, entry.subset) == (dataset, protocol, subset)
            and entry.method == self.method
        ]
        rows = {setting: _first_of_each([row for row in fitting if row.at == setting]) for setting in settings}
        return {setting: found for setting, found in rows.items() if found}


def _first_of_each(rows: Sequence[PaperEntry]) -> list[PaperEntry]:
    """Rows without those of a method that stands in an earlier table, too."""
    unique: dict[tuple[Any, ...], PaperEntry] = {}
    for row in rows:
        unique.setdefault((row.method, row.variant, row.selected_on, row.oracle), row)
    return list(unique.values())


def _part_text(subset: tuple[str, str] | None) -> str:
    return "the whole split" if subset is None else f"the {subset[0]} subset ({subset[1]})"


def _average(entries: Sequence[PaperEntry]) -> PaperEntry:
    """The mean of printed rates; undefined where one is not printed."""
    columns = {name: [entry.metrics[name] for entry in entries] for name in entries[0].metrics}
    metrics: dict[str, float | None] = {}
    for name, values in columns.items():
        printed = [value for value in values if value is not None]
        metrics[name] = math.fsum(printed) / len(printed) if len(printed) == len(values) else None
    errata: list[Erratum] = []
    for erratum in (erratum for entry in entries for erratum in entry.errata):
        places = [str(entry.at) for entry in entries if erratum in entry.errata]
        where = f"At {', '.join(places)}: " if len(places) < len(entries) else ""
        # A correction is of one rate, not of the mean.
        spread = Erratum(erratum.metrics, {}, where + erratum.reason)
        if spread not in errata:
            errata.append(spread)
    return replace(entries[0], at=None, metrics=metrics, errata=tuple(errata))


def paper_names() -> list[str]:
    """The keys of the papers whose numbers are known."""
    return sorted(_file())


@cache
def _file() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("paper_results.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def load_paper_results(method: str) -> PaperResults:
    """Load the printed results of one paper.

    Args:
        method: The method's key: ``"tcmr"``, ``"pglh"``, ``"omg"``, ``"cmc"`` or ``"uacs"``.

    Raises:
        MsaError: If it is unknown; the nearest is named.
    """
    papers = _file()
    if method not in papers:
        raise unknown_name("paper", method, papers)
    return parse_paper(method, papers[method])


def parse_paper(key: str, paper: Mapping[str, Any]) -> PaperResults:
    """Turn one paper's part of the file into entries, checking all of it.

    Args:
        key: The method's key.
        paper: Its part of the parsed file.

    Raises:
        MsaError: If a metric, protocol or split is unknown, a row has the wrong number of values, a share is not
            between 0 and 100 percent, or an erratum fits no row.
    """
    entries: list[PaperEntry] = []
    for table in paper["tables"]:
        entries += _parse_table(f"{key}, {table['table']}", table, paper.get("mean_over"))
    return PaperResults(key, paper["title"], paper["source"], paper["method"], tuple(entries))


def _parse_table(where: str, table: Mapping[str, Any], mean_over: Sequence[float] | None) -> list[PaperEntry]:
    names, percent = table["metrics"], table.get("percent", ())
    for name in names:
        if name not in METRICS:
            raise unknown_name(f"metric of {where}", name, METRICS)
    if table["protocol"] not in PROTOCOLS:
        raise unknown_name(f"protocol of {where}", table["protocol"], PROTOCOLS)
    places = table.get("at", ["mean"])
    unused = list(table.get("errata", ()))
    entries = []
    for row in table["rows"]:
        subset = row.get("subset")
        if subset is not None:
            Subset(*subset)
        selected_on = row.get("selected_on", table["selected_on"])
        if selected_on not in SELECTED_ON:
            raise unknown_name(f"selection split of {where}", selected_on, SELECTED_ON)
        blocks = row["values"] if "at" in table else [row["values"]]
        if len(blocks) != len(places):
            raise MsaError(f"{where}: {row['method']} has values for {len(blocks)} of {len(places)} settings.")
        for place, values in zip(places, blocks, strict=True):
            if len(values) != len(names):
                raise MsaError(f"{where}: {row['method']} has {len(values)} values for {len(names)} metrics.")
            at = None if place == "mean" else place
            errata = [erratum for erratum in table.get("errata", ()) if _fits(erratum, row, at)]
            unused = [erratum for erratum in unused if erratum not in errata]
            entries.append(
                PaperEntry(
                    table=table["table"],
                    about=table["about"],
                    dataset=row["dataset"],
                    subset=None if subset is None else (subset[0], subset[1]),
                    method=row["method"],
                    variant=row.get("variant"),
                    protocol=table["protocol"],
                    at=at,
                    rates=tuple(mean_over) if at is None and mean_over else None,
                    metrics={
                        name: _stored(where, name, value, name in percent)
                        for name, value in zip(names, values, strict=True)
                    },
                    selected_on=selected_on,
                    oracle=row.get("oracle", False),
                    errata=tuple(_parse_erratum(where, erratum, percent) for erratum in errata),
                )
            )
    if unused:
        raise MsaError(f"{where}: the erratum about {unused[0]['method']} on {unused[0]['dataset']} fits no row.")
    return entries


def _fits(erratum: Mapping[str, Any], row: Mapping[str, Any], at: float | str | None) -> bool:
    return (
        all(erratum[key] == row[key] for key in ("dataset", "method"))
        and all(erratum.get(key) == row.get(key) for key in ("variant", "subset"))
        and erratum.get("at", at) == at
    )


def _parse_erratum(where: str, erratum: Mapping[str, Any], percent: Sequence[str]) -> Erratum:
    corrected = {
        name: _stored(where, name, value, name in percent) for name, value in erratum.get("corrected", {}).items()
    }
    known = {name: value for name, value in corrected.items() if value is not None}
    return Erratum(tuple(erratum["metrics"]), known, erratum["reason"].strip())


def _stored(where: str, name: str, value: float | None, percent: bool) -> float | None:
    if value is None:
        return None
    # Rounded so that 32.79 percent is the float nearest to 0.3279.
    stored = round(value / 100, 8) if percent else float(value)
    if METRICS[name].higher_is_better and not abs(stored) <= 1:
        raise MsaError(
            f"{where}: {value} is no {METRICS[name].pretty}, which lies between 0 and {100 if percent else 1}."
        )
    return stored
