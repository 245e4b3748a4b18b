"""What others wrote and we read: results, server answers, side files of checkpoints, run.json of a card, facts of a card.

A short run of each is fast; `-m slow` runs long ones and prints their counts.
"""

import dataclasses
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import strategies as st
from rich.console import Console

from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.report import print_results, results_markdown, run_name
from hf_msa.evaluation.results import read_results
from hf_msa.hub.cards import load_facts, read_run, write_card
from hf_msa.methods import METHODS
from hf_msa.models.msa_mllm_answers import label_entropy, label_entropy_bounds, parse_score
from hf_msa.models.msa_mllm_endpoint import EndpointMllm
from json_damage import damaged, fuzz
from made_results import make_results, make_table
from test_cards import RESULTS, RUN
from tiny import TINY_CONFIGS, tiny_processor, tiny_rows

FIXTURES = Path(__file__).parents[1] / "fixtures"
Target = tuple[st.SearchStrategy[Any], Callable[[Any], object]]


def results_reader(tmp_path: Path) -> Target:
    """results.json, of this version and of those before: read, shown and compared."""
    file = tmp_path / "results.json"
    other = tmp_path / "other"
    other.mkdir()
    versions = [json.loads((FIXTURES / "results" / f"version-{number}.json").read_text()) for number in (1, 2)]
    seeds = [*versions, json.loads(json.dumps(make_results(make_table(rates=(0.0, 0.5), training_seeds=(1,)))))]
    (other / "results.json").write_text(json.dumps(versions[1]))

    def read(content: bytes) -> None:
        file.write_bytes(content)
        found = read_results(file)
        results_markdown(found)
        run_name(found)
        print_results(found, console=Console(file=StringIO()))
        compare_runs([other, file], allow_oracle=True).to_markdown()

    return st.one_of(*map(damaged, seeds)), read


def server_answers(tmp_path: Path) -> Target:
    """Answers of a server of language models."""
    listed = [{"token": text, "logprob": value, "bytes": [45]} for text, value in (("-0", -0.1), ("1", -2.4))]
    tokens = [{**listed[0], "top_logprobs": listed}, {"token": ".4", "logprob": -0.2, "top_logprobs": listed[:1]}]
    choice = {"index": 0, "message": {"role": "assistant", "content": "-0.4"}, "logprobs": {"content": tokens}}
    server = EndpointMllm("http://127.0.0.1:1/v1")

    def read(content: bytes) -> None:
        answer = server._read(content).answer()
        parse_score(answer, (-3, 3))
        low, high = label_entropy_bounds(answer)
        assert 0 <= low <= label_entropy(answer) <= high and answer.logprob <= 0

    return damaged({"id": "1", "choices": [choice]}), read


def planner_file(tmp_path: Path) -> Target:
    """planner.json of OMG-Agent: rebuilt, and used to plan."""
    folder = FIXTURES / "checkpoints" / "omg"
    seed = json.loads((folder / "planner.json").read_text())
    model = METHODS["omg"].model_class.from_pretrained(folder)
    processor = tiny_processor(model.config)
    file = tmp_path / "planner.json"
    rows = tiny_rows(model.config)[:2]
    inputs = processor.from_rows(rows)

    def read(content: bytes) -> None:
        file.write_bytes(content)
        model.set_planner(None)
        model.stored_file = lambda name, place="": file if name == "planner.json" else None
        model.load_side_files()
        model.planner(processor)
        model.predict_rows(inputs, rows, processor)

    return damaged(seed), read


def verbalizer_file(tmp_path: Path) -> Target:
    """verbalizer.json of U-ACS: rebuilt, and used to describe a clip."""
    seed = json.loads((FIXTURES / "checkpoints" / "uacs" / "verbalizer.json").read_text())
    model: Any = METHODS["uacs"].model_class(TINY_CONFIGS["uacs"](route="fast"))
    file = tmp_path / "verbalizer.json"
    widths = {name: len(known["centers"][0]) for name, known in seed["statistics"].items()}
    clip = {name: np.linspace(-3, 9, 4 * width).reshape(4, width) for name, width in widths.items()}

    def read(content: bytes) -> None:
        file.write_bytes(content)
        model.stored_file = lambda name, place="": file
        model.load_side_files()
        assert "nan" not in model.verbalizer.describe(clip)

    return damaged(seed), read


def card_inputs(tmp_path: Path) -> Target:
    """run.json and results.json beside a checkpoint: rendered into its card."""
    from hf_msa.models.configuration_text import TextConfig

    TextConfig(audio_dim=5, vision_dim=3).save_pretrained(tmp_path)

    def read(content: tuple[bytes, bytes]) -> None:
        for name, written in zip(("run.json", "results.json"), content, strict=True):
            (tmp_path / name).write_bytes(written)
        read_run(tmp_path)
        write_card(tmp_path)

    run, results = json.dumps({**RUN, "method": "text"}).encode(), json.dumps(RESULTS).encode()
    return st.tuples(damaged(json.loads(run)), st.just(results)) | st.tuples(
        st.just(run), damaged(json.loads(results))
    ), read


def card_facts(tmp_path: Path) -> Target:
    """The YAML that a method's card is made of."""
    seed = yaml.safe_load(METHODS["text"].card.read_text(encoding="utf-8"))
    file = tmp_path / "card.yaml"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(METHODS._entries, "text", dataclasses.replace(METHODS["text"], card=file))
            load_facts("text")

    return damaged(seed), read


TARGETS = (results_reader, server_answers, planner_file, verbalizer_file, card_inputs, card_facts)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_damage_is_read_or_refused_in_one_sentence(target: Callable[[Path], Target], tmp_path: Path) -> None:
    counts = fuzz(*target(tmp_path), examples=60)
    assert counts["refused"] > 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_much_damage(target: Callable[[Path], Target], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = fuzz(*target(tmp_path), examples=3000)
    with capsys.disabled():
        print(f"\n{target.__name__}: tried {sum(counts.values())}, {counts}, other errors 0")
    assert counts["refused"] > 500
