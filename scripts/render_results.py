"""Render docs/results.md from docs/results.md.jinja and the numbers under docs/results/.

No number of the page is typed by hand: tables come from results.json, facts of training from run.json, the rest from
files that the analysis tools and benchmarks wrote. `python scripts/render_results.py add RUN NAME` copies a run's
numbers (never its predictions, which hold rows of the data) to docs/results/NAME/, `keep FILE NAME` a table that an
analysis tool wrote as Markdown; without arguments the page is rendered.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jinja2

from hf_msa.evaluation.report import UNDEFINED, format_estimate, metric_heading, results_markdown
from hf_msa.files import atomic_write

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
    """Copy a run's numbers to docs/results/."""
    target = NUMBERS / name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "results.json", target / "results.json")
    for file in run.glob("seed-*/run.json"):
        shutil.copyfile(file, target / f"run-{file.parent.name.removeprefix('seed-')}.json")


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
    parser.add_argument("command", nargs="?", choices=["add", "keep", "render"], default="render")
    parser.add_argument("run", nargs="?", type=Path, help="folder with results.json and seed-* folders, or a file")
    parser.add_argument("name", nargs="?", help="name under docs/results/")
    arguments = parser.parse_args(argv)
    if arguments.command == "add":
        add(arguments.run, arguments.name)
    elif arguments.command == "keep":
        keep(arguments.run, arguments.name)
    else:
        with atomic_write(ROOT / "results.md") as temporary:
            temporary.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
