"""Render docs/results.md from docs/results.md.jinja and the numbers under docs/results/.

No measured number is typed into the template (tests/test_results_page.py fails on one): tables come from results.json,
facts of training from run.json, the rest from files that the analysis tools and benchmarks wrote.
`python scripts/render_results.py add RUN NAME` keeps a run's numbers in docs/results/NAME/results.json, `keep FILE NAME` a
file that an analysis tool wrote or all tables and drawings of a folder, `compare NAME FIRST OTHER...` the differences of
runs from the first with their p-values, as `hf-msa compare` finds them; without arguments the page is rendered. What is
kept is small: no predictions (they hold rows of the data), no training history, a line per entry in JSON, a line per group
in drawings.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jinja2

from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.paper_results import load_paper_results
from hf_msa.evaluation.report import UNDEFINED, format_estimate, format_value, metric_heading, results_markdown
from hf_msa.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent / "docs"
NUMBERS = ROOT / "results"
TEMPLATE = "results.md.jinja"
GENERATED = "*Generated sample corpus, not a benchmark.*"


def read(name: str) -> Any:
    """Read a JSON file under docs/results/."""
    return json.loads((NUMBERS / name).read_text(encoding="utf-8"))


def table(name: str) -> str:
    """The table over missing rates of one result."""
    results = read(f"{name}/results.json")
    return _noted(results_markdown(results).rstrip("\n"), [results])


def _noted(markdown: str, results: list[Any]) -> str:
    """A table, with the note that those on the sample corpus have."""
    return generated(markdown) if any(one["dataset"]["name"] == "sample" for one in results) else markdown


def text(name: str) -> str:
    """A text file under docs/results/."""
    return (NUMBERS / name).read_text(encoding="utf-8")


def tables(markdown: str) -> list[str]:
    """The tables of a Markdown text, in order."""
    found: list[list[str]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def has(name: str) -> bool:
    """Whether there is such a file under docs/results/."""
    return (NUMBERS / name).is_file()


def rows(names: dict[str, str], metrics: list[str]) -> str:
    """Means over the missing rates of several results (label to name), with the spread over training seeds."""
    lines = [
        "| run | seeds | " + " | ".join(metric_heading(metric) for metric in metrics) + " |",
        "|---|---|" + "---|" * len(metrics),
    ]
    found = {label: read(f"{name}/results.json") for label, name in names.items()}
    for label, results in found.items():
        seeds = sorted({run["training_seed"] for run in results["runs"]})
        label += " (oracle)" if results["oracle"] else ""
        cells = [format_estimate(metric, results["mean_over_rates"][metric]) for metric in metrics]
        lines.append(f"| {label} | {len(seeds)} | " + " | ".join(cells) + " |")
    return _noted("\n".join(lines), list(found.values()))


def cell(name: str, column: str, row: str | dict[str, str], table: int = 0) -> str:
    """A cell of a table in a Markdown file: of the one row with this first cell, or with these cells by their columns.

    Raises:
        ValueError: If there is no such row or column, or several.
    """
    heading, _, *body = (
        [part.strip().replace("\\|", "|") for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in tables(text(name))[table].splitlines()
    )
    wanted = {heading[0]: row} if isinstance(row, str) else row
    fitting = [cells for cells in body if wanted.items() <= dict(zip(heading, cells, strict=True)).items()]
    if len(fitting) != 1 or column not in heading:
        raise ValueError(f"{name}, table {table}: {len(fitting)} rows with {wanted}; columns: {', '.join(heading)}.")
    return fitting[0][heading.index(column)]


def number(cell_text: str, part: int = 0) -> float:
    """A number of a cell: the first one, or another one, e.g. an end of its interval (numbers behind ± count)."""
    return float(re.findall(r"[-+]?\d+(?:\.\d+)?", cell_text)[part])


def digits(value: float, after_point: int = 2) -> str:
    """A number with so many decimals."""
    return f"{value:.{after_point}f}"


def paper(name: str, table: str, method: str, metric: str) -> str:
    """A number on MOSI that a paper prints in a table, of `hf_msa.evaluation.paper_results`."""
    found = {
        entry.metrics[metric]
        for entry in load_paper_results(name).entries
        if (entry.table, entry.method, entry.dataset, entry.variant, entry.at) == (table, method, "mosi", None, None)
    }
    (printed,) = found
    return format_value(metric, printed)


def study_rows(study: str, corpus: str) -> str:
    """The rows of one study of mechanisms on one corpus: errors per setting, and the way from the text to the ceiling."""
    rows = read(f"study/{study}.json")["corpora"][corpus]["arms"]
    settings = list(next(iter(rows.values()))["settings"])
    several = settings if len(settings) in range(2, 5) else []
    heading = ["row", "seeds", *(f"MAE at {setting}" for setting in several), "MAE ↓", "Corr ↑", "Non0 Acc-2 ↑", "way"]
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for name, row in rows.items():
        cells = [name, str(row["seeds"])]
        cells += [_spread(row["settings"][setting]) for setting in several]
        cells += [_spread(row["mae"]), _spread(row["corr"]), _spread(row["non0_acc2"], 100, 1)]
        lines.append("| " + " | ".join([*cells, f"{100 * row['way']:.0f} %" if "way" in row else UNDEFINED]) + " |")
    return generated("\n".join(lines))


def _spread(estimate: dict[str, float | None], scale: int = 1, digits: int = 3) -> str:
    if estimate["mean"] is None:
        return UNDEFINED
    spread = "" if estimate["sd"] is None else f" ± {scale * estimate['sd']:.{digits}f}"
    return f"{scale * estimate['mean']:.{digits}f}{spread}"


def study_effects(study: str) -> str:
    """How much each part of a method lowers the error, with its fuel and without."""
    found = read(f"study/{study}.json")
    corpora, digits = found["corpora"], 1 if found["measure"] == "wrong sign" else 3
    labels = dict.fromkeys(label for part in corpora.values() for label in part["effects"])
    heading = [f"{corpus} ({_seeds(part['effects'].values())})" for corpus, part in corpora.items()]
    lines = ["| part | " + " | ".join(heading) + " |", "|---|" + "---|" * len(corpora)]
    for label in labels:
        cells = [_effect(part["effects"].get(label), digits) for part in corpora.values()]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return generated("\n".join(lines))


def _seeds(effects: Iterable[dict[str, Any]]) -> str:
    counts = sorted({found["seeds"] for found in effects})
    return " to ".join(map(str, counts[:1] + counts[1:][-1:])) + " seeds"


def _effect(found: dict[str, Any] | None, digits: int) -> str:
    if found is None:
        return UNDEFINED
    bounds = "" if found["low"] is None else f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    return f"{found['difference']:+.{digits}f}{bounds}"


def generated(table: str) -> str:
    """A table with the note that all tables on the sample corpus have."""
    return f"{table}\n\n{GENERATED}"


def costs(names: dict[str, str]) -> str:
    """What a sample costs in several results (label to name), per route and in all."""
    found = {label: read(f"{name}/results.json")["cost"] for label, name in names.items()}
    routes = list(next(iter(found.values()))["routes"])
    lines = [
        "| run | questions | tokens written | seconds | "
        + " | ".join(f"{name} (%)" for name in routes)
        + " | unreadable (%) |",
        "|---|---|---|---|" + "---|" * len(routes) + "---|",
    ]
    for label, cost in found.items():
        unreadable = UNDEFINED if cost["unreadable"] is None else f"{100 * cost['unreadable']:.1f}"
        shares = " | ".join(f"{100 * cost['routes'][name]:.1f}" for name in routes)
        lines.append(
            f"| {label} | {cost['calls']:.2f} | {cost['tokens']:.2f} | {cost['seconds']:.3f} | {shares} | "
            f"{unreadable} |"
        )
    return "\n".join(lines)


def difference(name: str, run: str, metric: str) -> str:
    """How a run differs from the first one of a comparison, with its p-value, both of `hf-msa compare`."""
    found = read(f"{name}.json")[run][metric]
    scale, digits = (100, 1) if METRICS[metric].percent else (1, 3)
    return f"{scale * found['value']:+.{digits}f} (p = {found['p']:.3f})"


def training(name: str) -> str:
    """Stages, epochs and seconds of every seed of one result."""
    lines = ["| seed | stage | epochs | chosen epoch | validation loss | seconds |", "|---|---|---|---|---|---|"]
    for run in read(f"{name}/results.json")["training"]:
        for stage in run["stages"]:
            chosen = stage["selection"]
            lines.append(
                f"| {run['seed']} | {stage['name']} | {stage['epochs']:g} | {chosen['epoch']:g} | {chosen['value']:.4f} | "
                f"{stage['seconds']:.0f} |"
            )
    return "\n".join(lines)


def compact(value: Any) -> str:
    """JSON with one line per entry of the outermost object or list; of folders of this machine the names alone."""
    if isinstance(value, dict):
        entries, ends = [f"{json.dumps(key)}: {_line(entry)}" for key, entry in value.items()], "{}"
    else:
        entries, ends = list(map(_line, value)), "[]"
    lines = ",\n".join(re.sub(r'"/[^"]*/([^"/]+)"', r'"\1"', entry) for entry in entries)
    return f"{ends[0]}\n{lines}\n{ends[1]}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def without_history(run: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run.json: no history, but the steps it went on for, and the validation MAE beside the lowest one.

    Configuration and data set are left out, too: the result of the run has them.
    """
    stages = []
    for stage in run["stages"]:
        history = stage.get("history", [])
        kept = {key: value for key, value in stage.items() if key != "history"}
        if history:
            kept["steps"] = max(entry["step"] for entry in history)
        errors = {entry["step"]: entry["eval_mae"] for entry in history if "eval_mae" in entry}
        if (stage.get("selection") or {}).get("step") in errors:
            kept["validation_mae"] = {"chosen": errors[stage["selection"]["step"]], "lowest": min(errors.values())}
        stages.append(kept)
    return {key: value for key, value in run.items() if key not in ("config", "dataset")} | {"stages": stages}


def small(svg: str) -> str:
    """A drawing of matplotlib to a tenth of a point, with a line per group in place of several per point."""
    svg = re.sub(r"(?<!: )-?\d+\.\d{2,}(?=[ ,\"\n)])", lambda number: f"{float(number[0]):.1f}", svg)
    return re.sub(r"\s*\n\s*(?!\s|<g id=|$)", " ", svg)


def add(run: Path, name: str) -> None:
    """Keep a run's numbers: its results, and what `without_history` leaves of each seed's training."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    files = sorted(run.glob("seed-*/run.json"))
    if files:
        results["training"] = [without_history(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    _write(f"{name}/results.json", compact(results))


def compare(name: str, folders: list[Path]) -> None:
    """Write how runs differ from the first of them to docs/results/, by the names of their folders."""
    found = compare_runs(folders)
    rows = {
        folder.name: {metric: {"value": one.value, "p": one.p_value} for metric, one in own.items()}
        for folder, own in zip(folders[1:], found.differences, strict=True)
    }
    _write(f"{name}.json", compact(rows))


def keep(file: Path, name: str) -> None:
    """Keep one file of an analysis: JSON without indentation, drawings with short paths, everything else as it is.

    Of a folder, its JSON and Markdown files and its drawings are kept.
    """
    if file.is_dir():
        for part in sorted(file.iterdir()):
            if part.suffix in (".json", ".md", ".svg"):
                keep(part, f"{name}/{part.name}")
        return
    kept = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        kept = compact(json.loads(kept))
    elif file.suffix == ".svg":
        kept = small(kept)
    _write(name, kept)


def _write(name: str, kept: str) -> None:
    target = NUMBERS / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        temporary.write_text(kept, encoding="utf-8")


def render() -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, digits=digits, generated=generated)
    functions: list[Callable[..., Any]] = [table, rows, cell, costs, difference, paper]
    functions += [study_rows, study_effects, training, read, text, tables, has]
    environment.globals.update({function.__name__: function for function in functions}, GENERATED=GENERATED)
    return environment.get_template(TEMPLATE).render()


def main(argv: list[str] | None = None) -> int:
    """Add a run's numbers, or render the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("render", help="render the page")
    for command, what in (("add", "folder with results.json and seed-* folders"), ("keep", "file")):
        part = commands.add_parser(command, help=f"keep the numbers of a {what}")
        part.add_argument("run", type=Path, help=what)
        part.add_argument("name", help="name under docs/results/")
    part = commands.add_parser("compare", help="differences of runs from the first, with their p-values")
    part.add_argument("name", help="name under docs/results/")
    part.add_argument(
        "runs", type=Path, nargs="+", help="folders with results.json and predictions; the first is compared with"
    )
    arguments = parser.parse_args(argv)
    if arguments.command == "add":
        add(arguments.run, arguments.name)
    elif arguments.command == "keep":
        keep(arguments.run, arguments.name)
    elif arguments.command == "compare":
        compare(arguments.name, arguments.runs)
    else:
        with atomic_write(ROOT / "results.md") as temporary:
            temporary.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
