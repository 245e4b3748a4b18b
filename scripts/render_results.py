"""Render docs/results.md from docs/results.md.jinja and the numbers under docs/results/.

No number of the page is typed by hand: tables come from results.json, facts of training from run.json, the rest from
files that the analysis tools and benchmarks wrote. `python scripts/render_results.py add RUN NAME` copies a run's
numbers (never its predictions, which hold rows of the data) to docs/results/NAME/, `keep FILE NAME` a table that an
analysis tool wrote as Markdown, `compare NAME FIRST OTHER...` the differences of runs from the first with their p-values, as
`hf-msa compare` finds them; without arguments the page is rendered.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jinja2

from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.report import UNDEFINED, format_estimate, metric_heading, results_markdown
from hf_msa.files import atomic_write, write_json

ROOT = Path(__file__).resolve().parent.parent / "docs"
NUMBERS = ROOT / "results"


def read(name: str) -> Any:
    """Read a JSON file under docs/results/."""
    return json.loads((NUMBERS / name).read_text(encoding="utf-8"))


def table(name: str) -> str:
    """The table over missing rates of one result."""
    return results_markdown(read(f"{name}/results.json"))


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


def mean_of(name: str, key: str) -> float:
    """The mean of one number over the missing rates."""
    values = [float(row[key]) for row in read(name)["rates"]]
    return sum(values) / len(values)


def rows(names: dict[str, str], metrics: list[str]) -> str:
    """Means over the missing rates of several results (label to name), with the spread over training seeds."""
    lines = [
        "| run | seeds | " + " | ".join(metric_heading(metric) for metric in metrics) + " |",
        "|---|---|" + "---|" * len(metrics),
    ]
    for label, name in names.items():
        results = read(f"{name}/results.json")
        seeds = sorted({run["training_seed"] for run in results["runs"]})
        label += " (oracle)" if results["oracle"] else ""
        cells = [format_estimate(metric, results["mean_over_rates"][metric]) for metric in metrics]
        lines.append(f"| {label} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def value(name: str, metric: str, digits: int = 3) -> str:
    """One metric of a result, mean over its missing rates and seeds."""
    return f"{read(f'{name}/results.json')['mean_over_rates'][metric]['mean']:.{digits}f}"


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
    for file in sorted((NUMBERS / name).glob("run-*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        for stage in run["stages"]:
            chosen = stage["selection"]
            lines.append(
                f"| {run['seed']} | {stage['name']} | {stage['epochs']:g} | {chosen['epoch']:g} | {chosen['value']:.4f} | "
                f"{stage['seconds']:.0f} |"
            )
    return "\n".join(lines)


def add(run: Path, name: str) -> None:
    """Copy a run's numbers to docs/results/, folders of this machine by their names alone."""
    target = NUMBERS / name
    target.mkdir(parents=True, exist_ok=True)
    files = {run / "results.json": "results.json"}
    files |= {file: f"run-{file.parent.name.removeprefix('seed-')}.json" for file in run.glob("seed-*/run.json")}
    for file, own in files.items():
        shown = re.sub(r'"/[^"]*/([^"/]+)"', r'"\1"', file.read_text(encoding="utf-8"))
        (target / own).write_text(shown, encoding="utf-8")


def compare(name: str, folders: list[Path]) -> None:
    """Write how runs differ from the first of them to docs/results/, by the names of their folders."""
    found = compare_runs(folders)
    rows = {
        folder.name: {metric: {"value": one.value, "p": one.p_value} for metric, one in own.items()}
        for folder, own in zip(folders[1:], found.differences, strict=True)
    }
    write_json(NUMBERS / f"{name}.json", rows)


def keep(file: Path, name: str) -> None:
    """Copy one file of an analysis to docs/results/."""
    target = NUMBERS / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def render() -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        table=table,
        rows=rows,
        value=value,
        costs=costs,
        difference=difference,
        training=training,
        read=read,
        text=text,
        tables=tables,
        has=has,
        mean_of=mean_of,
    )
    return environment.get_template("results.md.jinja").render()


def main(argv: list[str] | None = None) -> int:
    """Add a run's numbers, or render the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("render", help="render the page")
    for command, what in (("add", "folder with results.json and seed-* folders"), ("keep", "file")):
        part = commands.add_parser(command, help=f"copy a {what}")
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
