"""Tables of what the benchmark measured: on the terminal, and as JSON and Markdown."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_msa.files import atomic_write, write_json

GOALS = {
    "epoch": {"times_reference": 3.0, "over_bare": 1.5},
    "sweep": {"times_reference": 20.0},
}
"""By measurement: at least so many times the reference's throughput, at most so many times the bare passes' time."""

HEADINGS = (
    "",
    "samples/s",
    "speed over the reference",
    "time over the bare text encoder",
    "peak memory: ours, reference, bare",
)
_LABELS = {
    "phase A": "training, phase A (confidence)",
    "phase B": "training, phase B (the rest)",
    "epoch": "training, one epoch (A and B)",
    "sweep": "evaluation, 10 missing rates",
}


def _ratio(name: str, ratio: str, values: dict[str, float]) -> str:
    text = f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"
    goal = GOALS.get(name, {}).get(ratio)
    if goal is None:
        return text
    at_least = ratio == "times_reference"
    reached = values["median"] >= goal if at_least else values["median"] <= goal
    return f"{text}; goal {'at least' if at_least else 'at most'} {goal:g}: {'reached' if reached else 'missed'}"


def table_rows(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row of cells per measurement, under `HEADINGS`."""
    for name, found in content["measured"].items():
        sizes = found.get("memory", {}).values()
        yield (
            _LABELS[name],
            f"{found['samples_per_second']['ours']['median']:.1f}",
            _ratio(name, "times_reference", found["times_reference"]),
            _ratio(name, "over_bare", found["over_bare"]),
            ", ".join(f"{size['peak'] / 2**20:.0f}" for size in sizes) + " MiB" if sizes else "",
        )


def conditions(content: dict[str, Any]) -> str:
    """In a few sentences, what was measured on what."""
    machine, setting = content["machine"], content["setting"]
    shapes = ", ".join(
        f"{name} {' x '.join(map(str, shape))} (mean length {setting['mean_lengths'][name]})"
        for name, shape in setting["shapes"].items()
    )
    return (
        f"Longest lengths and widths: {shapes}. Text encoder: {setting['text_model']}. {setting['rows']} generated rows, "
        f"batches of {setting['batch_size']['training']} in training and {setting['batch_size']['sweep']} in the sweep; "
        f"medians, lowest and highest of {setting['repeats']} turns. {machine['device']}, {machine['architecture']} "
        f"{machine['system']}, {machine['cpu capability']}, {machine['cpus']} CPUs, {machine['threads']} threads, "
        f"{machine['precision']}, torch {machine['torch']}, Python {machine['python']}."
    )


def markdown(content: dict[str, Any]) -> str:
    """The table and its conditions as Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells) + " |" for cells in table_rows(content)]
    return "\n".join([*lines, "", conditions(content), ""])


def render(content: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="hf_msa throughput", show_lines=True)
    for heading in HEADINGS:
        table.add_column(heading)
    for cells in table_rows(content):
        table.add_row(*cells)
    console = Console()
    console.print(table)
    console.print(conditions(content), soft_wrap=True)


def write_both(folder: Path, name: str, content: dict[str, Any], text: str) -> None:
    """Write `content` as ``<name>.json`` and `text` as ``<name>.md`` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", content)
    with atomic_write(folder / f"{name}.md") as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def write(content: dict[str, Any], folder: Path) -> None:
    """Write benchmark.json and benchmark.md into `folder`."""
    write_both(folder, "benchmark", content, markdown(content))
