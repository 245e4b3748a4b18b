"""Runs the quickstart of docs/api.md and then docstring examples in the current folder; one JSON line for each.

    python run_examples.py DOCS_PAGE RESULTS [NAME...]

A process of its own, because examples register methods, data sets and protocols.
"""

import inspect
import json
import sys
import textwrap
import time
import traceback
import wave
from pathlib import Path

import hf_msa

OPEN, CLOSE = "```python\n", "\n```"


def example_of(name: str) -> str:
    """The example in the docstring of a public name; empty where there is none."""
    text = inspect.getdoc(getattr(hf_msa, name)) or ""
    return textwrap.dedent(text.partition("Example:\n")[2].rpartition("```")[0].partition("```python\n")[2])


def quickstart_of(page: Path) -> str:
    """The first block of code of a page."""
    return page.read_text(encoding="utf-8").partition(OPEN)[2].partition(CLOSE)[0]


def write_clips() -> None:
    """A second of silence, and a list of it."""
    Path("clips").mkdir()
    with wave.open("clips/one.wav", "wb") as file:
        file.setparams((1, 2, 16_000, 16_000, "NONE", ""))
        file.writeframes(bytes(32_000))
    Path("clips/manifest.csv").write_text("path,text,label,split\none.wav,a dull plot,-1,train\n", encoding="utf-8")


def main(page: str, results: str, *names: str) -> None:
    """Run what is named, each in a namespace of its own."""
    codes = {"quickstart": quickstart_of(Path(page)), **{name: example_of(name) for name in names}}
    write_clips()
    with open(results, "a", encoding="utf-8") as file:
        for name, code in codes.items():
            started, error = time.perf_counter(), None
            try:
                # The loopback Hub knows this organisation.
                exec(compile(code.replace('"org/', '"lab/'), f"<example of {name}>", "exec"), {"__name__": name})
            except Exception:
                error = traceback.format_exc()
            seconds = round(time.perf_counter() - started, 1)
            file.write(json.dumps({"name": name, "error": error, "seconds": seconds}) + "\n")
            file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
