"""The endpoint back end against a real server, llama-cpp-python's, and against the same weights in transformers.

`HF_MSA_GGUF` names SmolLM2-135M-Instruct as a GGUF file, `HF_MSA_SMOLLM2` a folder of transformers with the same weights.
The server runs in this interpreter, or in that which `HF_MSA_LLAMA_PYTHON` names:
``pip install 'llama-cpp-python[server]'``. It gets the weights in float32: quantised ones are multiplied with quantised
activations there, which moves entropies by a tenth of a nat and often the answer.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import get_session

from hf_msa.models.modeling_uacs import UacsForSentimentAnalysis, UacsOutput
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.msa_mllm import LocalMllm, Mllm, MllmRequest
from hf_msa.models.msa_mllm_answers import label_entropy, label_entropy_bounds, parse_score
from hf_msa.models.msa_mllm_endpoint import EndpointMllm
from hf_msa.models.uacs_prompts import direct_prompt
from hf_msa.models.uacs_rules import VERIFY
from nonempty import some
from tiny import tiny_processor, tiny_rows, tiny_uacs_config

GGUF, FOLDER = os.environ.get("HF_MSA_GGUF"), os.environ.get("HF_MSA_SMOLLM2")
PYTHON = os.environ.get("HF_MSA_LLAMA_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        GGUF is None or FOLDER is None or (PYTHON is None and importlib.util.find_spec("llama_cpp") is None),
        reason="HF_MSA_GGUF and HF_MSA_SMOLLM2 name no model, or llama-cpp-python is not installed",
    ),
]
TO_FLOAT32 = """
import sys, llama_cpp
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype, settings.allow_requantize, settings.nthread = 0, True, 1
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), settings))
"""
WORDS = (
    "the acting was wonderful and i loved every minute",
    "i fell asleep twice and want my money back",
    "well the plot had its moments but the ending ruined it",
    "umm not bad at all",
)
SAID = (
    *WORDS,
    "i hate this film",
    "the best phone that i have ever had",
    "it is a book about trains",
    "she was great but he was terrible",
)
REQUESTS = [
    *(MllmRequest(direct_prompt(LabelFamily.of("mosi"), words, ("text",))) for words in WORDS),
    *(MllmRequest(f"What is the sentiment of: {words}?") for words in WORDS),
    MllmRequest("Translate to Chinese: good", system="You are a dictionary."),
]
TOKENS = 16


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server."""
    python, file = PYTHON or sys.executable, tmp_path_factory.mktemp("server") / "float32.gguf"
    subprocess.run([python, "-c", TO_FLOAT32, str(GGUF), str(file)], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = {"model": file, "port": port, "logits_all": True, "n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1}
    command = [
        python,
        "-m",
        "llama_cpp.server",
        *(str(part) for key, value in options.items() for part in (f"--{key}", value)),
    ]
    with open(file.parent / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}/v1"
        for _ in range(240):
            time.sleep(0.5)
            assert process.poll() is None, (file.parent / "log").read_text()
            try:
                if get_session().get(f"{address}/models").is_success:
                    break
            except Exception:
                continue  # it is not there yet
        yield address
    finally:
        process.terminate()
        process.wait()
        Path(file).unlink()


@pytest.fixture(scope="module")
def mllm(url: str) -> EndpointMllm:
    return EndpointMllm(url, vocabulary_size=49_152)


def test_answers_and_entropies_are_those_of_the_same_weights_here(mllm: EndpointMllm) -> None:
    here = LocalMllm.from_pretrained(str(FOLDER), dtype=torch.float32).generate(REQUESTS, TOKENS + 4)
    for (answer,), (local,) in some(zip(mllm.generate(REQUESTS, TOKENS), here, strict=True)):
        # The server does not list the end, and does not stop within a character.
        length = len(answer.token_texts)
        assert answer.text == "".join(answer.token_texts) == "".join(local.token_texts[:length])
        # Parts of characters it cannot spell.
        assert answer.token_texts == local.token_texts[:length] or not answer.text.isascii()
        assert local.token_texts[length:] == ("",) if answer.finished else length >= TOKENS
        assert answer.token_entropy_bounds is not None
        # The server keeps keys and values in half precision.
        for (low, high), entropy in zip(answer.token_entropy_bounds, local.token_entropies[:length], strict=True):
            assert low - 0.01 <= entropy <= high + 0.01
        assert answer.token_logprobs == pytest.approx(local.token_logprobs[:length], abs=0.02)


def test_only_numbers_are_written_where_nothing_else_may_be(mllm: EndpointMllm) -> None:
    free = [answer for (answer,) in mllm.generate(REQUESTS[4:], TOKENS)]
    assert all(parse_score(answer, (-3, 3)) is None for answer in free)
    for (answer,) in some(mllm.generate(REQUESTS[4:], TOKENS, only_number=(-3.0, 3.0))):
        assert parse_score(answer, (-3, 3)) == float(answer.text)
        low, high = label_entropy_bounds(answer)
        # The distribution before the constraint: it would not have written a number by itself.
        assert 0 < low <= label_entropy(answer) <= high


def test_the_server_is_asked_for_its_model(mllm: EndpointMllm) -> None:
    assert str(mllm.identity["served_model"]).endswith("float32.gguf")
    with pytest.raises(ConnectionError, match="refused with status 404|cannot be reached|status 4"):
        EndpointMllm(mllm.name.removesuffix("/v1") + "/v2", retries=0).generate(REQUESTS[:1], 1)


def test_candidates_are_drawn_by_seed(mllm: EndpointMllm) -> None:
    drawn = [
        mllm.generate(REQUESTS[:1], TOKENS, num_candidates=3, temperature=0.8, top_p=0.9, seed=1)[0] for _ in range(2)
    ]
    texts = [[answer.text for answer in row] for row in drawn]
    assert texts[0] == texts[1] and len({*texts[0]}) > 1


def test_the_cascade_takes_the_same_routes_here_and_there(mllm: EndpointMllm) -> None:
    torch.manual_seed(0)
    model = UacsForSentimentAnalysis(
        tiny_uacs_config(expert_constrained=True, use_verbalizer=False, route="mllm")
    ).eval()
    rows = [
        {**row, "id": str(index), "text": words}
        for index, (row, words) in enumerate(zip(tiny_rows(model.config, 8), SAID, strict=True))
    ]
    processor = tiny_processor(model.config)
    inputs = processor.from_rows(rows)
    local = LocalMllm.from_pretrained(str(FOLDER), dtype=torch.float32)

    def outputs(expert: Mllm) -> UacsOutput:
        model.set_expert(expert)
        return model.predict_rows(inputs, rows, processor)

    alone, there = outputs(local), outputs(mllm)
    assert alone.expert_score is not None and there.expert_score is not None
    assert torch.equal(alone.expert_score, there.expert_score) and alone.expert_score.isfinite().all()
    entropies = [out.expert_uncertainty.flatten() for out in (alone, there) if out.expert_uncertainty is not None]
    bounds = [
        label_entropy_bounds(answer, (-3, 3))
        for (answer,) in mllm.generate(model.expert_requests(rows), 8, only_number=(-3.0, 3.0))
    ]
    for (low, high), exact, middle in some(zip(bounds, *(one.tolist() for one in entropies), strict=True)):
        assert low - 0.01 <= exact <= high + 0.01 and low <= middle <= high
    # Thresholds in the middle of what both say: where their entropies differ, the routes need not be the same.
    unsure = alone.uncertainty.flatten().sort().values if alone.uncertainty is not None else torch.zeros(8)
    model.config.route, model.config.tau_1 = "cascade", float(unsure[2:4].mean())
    ordered = torch.stack([one.sort().values for one in entropies])
    gaps = ordered[:, 1:].amin(0) - ordered[:, :-1].amax(0)
    place = int(gaps.argmax())
    assert gaps[place] > 0
    model.config.tau_2 = float((ordered[:, place].max() + ordered[:, place + 1].min()) / 2)
    first, second = outputs(local), outputs(mllm)
    assert first.route is not None and second.route is not None and len(first.route.unique()) > 1
    assert torch.equal(first.route, second.route)
    assert first.logits is not None and second.logits is not None
    # The second question tells the entropies, which differ within the bounds: its answer may differ with them. The weight
    # of an average is the share of the entropies.
    once = first.route != VERIFY
    assert once.any() and torch.allclose(first.logits[once], second.logits[once], atol=0.1)
