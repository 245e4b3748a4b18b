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
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_mllm_answers import label_entropy, label_entropy_bounds, parse_score
from hf_msa.models.msa_mllm_endpoint import EndpointMllm
from hf_msa.models.uacs_prompts import direct_prompt
from nonempty import some

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
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for request, (answer,) in some(zip(REQUESTS, mllm.generate(REQUESTS, TOKENS), strict=True)):
        turns = [{"role": "user", "content": request.prompt}]
        if request.system is not None:
            turns.insert(0, {"role": "system", "content": request.system})
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            made = model.generate(
                **inputs,
                max_new_tokens=TOKENS + 4,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=tokenizer.eos_token_id,
            )
        length = len(answer.token_texts)
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :][: length + 1]
        # The server does not list the end, and does not stop within a character.
        assert (tokens[length] == tokenizer.eos_token_id) == answer.finished and length >= TOKENS * (
            not answer.finished
        )
        tokens = tokens[:length]
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True) == "".join(answer.token_texts)
        logprobs = torch.cat(made.logits[:length]).double().log_softmax(-1)
        entropies = torch.special.entr(logprobs.exp()).sum(-1).tolist()
        assert answer.token_entropy_bounds is not None
        # The server keeps keys and values in half precision.
        for (low, high), entropy in zip(answer.token_entropy_bounds, entropies, strict=True):
            assert low - 0.01 <= entropy <= high + 0.01
        chosen = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
        assert answer.token_logprobs == pytest.approx(chosen, abs=0.02)


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
