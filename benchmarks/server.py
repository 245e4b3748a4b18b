"""Throughput of a language model on a server: ``python -m benchmarks.server URL``; see benchmarks/README.md.

Questions of U-ACS about made-up transcripts, with log-probabilities, at several numbers of requests under way at once: the
field `expert_concurrency`. No question is asked twice, but all begin alike, which servers may keep.
"""

import argparse
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_mllm_endpoint import TOKEN_VARIABLE, EndpointMllm
from hf_msa.models.uacs_prompts import direct_prompt

from .report import write_both
from .throughput import spread

WORDS = (
    "a the this film plot ending acting was is felt good bad dull bright but and so never very rather I you we".split()
)


def questions(count: int, seed: int) -> list[MllmRequest]:
    """First questions of U-ACS about transcripts of 12 random words, MOSI's mean."""
    draw, family = random.Random(f"questions {seed}"), LabelFamily.of("mosi")
    transcripts = (" ".join(draw.choices(WORDS, k=12)) for _ in range(count))
    return [MllmRequest(direct_prompt(family, transcript, ("text",))) for transcript in transcripts]


def measure(
    url: str, model: str | None, concurrency: Sequence[int], requests: int, max_new_tokens: int, repeats: int
) -> dict[str, Any]:
    """Ask a server at each concurrency in turn; the first turn, of one question, warms up.

    Args:
        url: Its address.
        model: What it calls the model; None: the only one that it serves.
        concurrency: Requests under way at once.
        requests: Questions of each measurement.
        max_new_tokens: Longest answer.
        repeats: Measured turns.

    Returns:
        By concurrency, lowest, median and highest answers and tokens per second.
    """
    sides = {
        count: EndpointMllm(url, os.environ.get(TOKEN_VARIABLE), model, timeout=600.0, concurrency=count)
        for count in concurrency
    }
    for mllm in sides.values():
        mllm.generate(questions(1, -1), max_new_tokens)
    found: dict[int, dict[str, list[float]]] = {count: {"answers": [], "tokens": []} for count in sides}
    for turn in range(repeats):
        for place, (count, mllm) in enumerate(sides.items()):
            asked = questions(requests, turn * len(sides) + place)
            begin = time.perf_counter()
            answers = mllm.generate(asked, max_new_tokens)
            seconds = time.perf_counter() - begin
            found[count]["answers"].append(requests / seconds)
            found[count]["tokens"].append(sum(len(one.token_texts) for (one,) in answers) / seconds)
    return {
        "setting": {"requests": requests, "max_new_tokens": max_new_tokens, "repeats": repeats},
        "per_second": {
            str(count): {name: spread(values) for name, values in rates.items()} for count, rates in found.items()
        },
    }


def markdown(content: dict[str, Any]) -> str:
    """The table."""
    lines = ["| requests at once | answers/s | tokens/s |", "| --- | --- | --- |"]
    for count, rates in content["per_second"].items():
        cells = (f"{one['median']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in rates.values())
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help=f"address of the server; a key for it is read from {TOKEN_VARIABLE}")
    parser.add_argument("--model", help="what the server calls the model (default: the only one that it serves)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=(1, 4, 16), help="default %(default)s")
    for name, value, text in (
        ("requests", 32, "questions of each measurement"),
        ("max-new-tokens", 16, "longest answer"),
        ("repeats", 3, "measured turns"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for server.json and server.md")
    given = parser.parse_args(arguments)
    if min(*given.concurrency, given.requests, given.max_new_tokens, given.repeats) < 1:
        parser.error("--concurrency, --requests, --max-new-tokens and --repeats must be at least 1.")
    content = measure(given.url, given.model, given.concurrency, given.requests, given.max_new_tokens, given.repeats)
    print(markdown(content))
    if given.output is not None:
        write_both(given.output, "server", content, markdown(content))


if __name__ == "__main__":
    main()
