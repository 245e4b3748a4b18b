"""Constrained decoding: models of two kinds of tokenizers that can write nothing but a number."""

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
)

from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_uacs import UacsForSentimentAnalysis
from hf_msa.models.msa_mllm import LocalMllm, MllmRequest
from hf_msa.models.msa_mllm_answers import MllmAnswer, parse_score
from hf_msa.models.msa_mllm_numbers import NumberGrammar, writable_numbers
from hf_msa.models.uacs_prompts import answer_text
from nonempty import some
from tiny import tiny_uacs_config
from tiny_llama import TOKENIZERS, byte_tokenizer, tiny_llama

MOSI = (-3.0, 3.0)
REQUESTS = [MllmRequest("Score?"), MllmRequest("And that, in a number?"), MllmRequest("-3 to 3, please: 2")]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


class TestWritableNumbers:
    def test_they_are_the_labels_of_one_decimal(self) -> None:
        assert writable_numbers(-0.2, 0.2) == ("-0.2", "-0.1", "0.0", "0.1", "0.2")
        assert writable_numbers(*MOSI) == tuple(answer_text(tenths / 10) for tenths in range(-30, 31))
        assert writable_numbers(9.85, 10.15) == ("9.9", "10.0", "10.1")

    def test_a_range_between_them_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"No number of one decimal lies from 0.11 to 0.19; give a wider range"):
            writable_numbers(0.11, 0.19)


class TestGrammar:
    def test_every_number_can_be_written_as_the_tokenizer_writes_it(self, tokenizer: PreTrainedTokenizerFast) -> None:
        end = tokenizer.eos_token_id
        grammar = NumberGrammar(tokenizer, [end])
        numbers = writable_numbers(*MOSI)
        for number in some(numbers):
            for written in (number, f" {number}"):
                tokens = tokenizer(written, add_special_tokens=False)["input_ids"]
                for position, token in enumerate([*tokens, end]):
                    assert token in grammar.allowed(tokens[:position], numbers), (written, position)
                assert grammar.allowed(tokens, numbers) == [end]
                assert grammar.allowed([*tokens, end, end], numbers) == [end]

    def test_every_path_ends_in_a_number(self, tokenizer: PreTrainedTokenizerFast) -> None:
        grammar = NumberGrammar(tokenizer, [tokenizer.eos_token_id])
        numbers = writable_numbers(-0.3, 1.5)
        found, open_paths = set(), [[]]  # type: ignore[var-annotated]
        while open_paths:
            path = open_paths.pop()
            assert len(path) <= 1 + len("-0.3")  # one space, once
            for token in some(grammar.allowed(path, numbers)):
                if token == tokenizer.eos_token_id:
                    found.add(tokenizer.decode(path).strip())
                else:
                    open_paths.append([*path, token])
        assert found == set(numbers)

    def test_a_number_may_go_on_where_it_may_end(self) -> None:
        grammar = NumberGrammar(byte_tokenizer(), [0])
        numbers = ("1", "1.5")
        one, point = byte_tokenizer().convert_tokens_to_ids(["1", "."])
        assert grammar.allowed([one], numbers) == [point, 0]

    def test_a_vocabulary_without_digits_is_refused(self) -> None:
        raw = Tokenizer(models.BPE({"a": 0, "-": 1, ".": 2}, []))
        with pytest.raises(ValueError, match="has no token for '0'.*leave the constraint out"):
            NumberGrammar(PreTrainedTokenizerFast(tokenizer_object=raw), [0])


class TestGenerate:
    @pytest.mark.parametrize("label_range", [MOSI, (-1.0, 1.0), (1.0, 5.0), (0.0, 12.0)])
    def test_answers_are_always_read(
        self, tokenizer: PreTrainedTokenizerFast, label_range: tuple[float, float]
    ) -> None:
        mllm, low, high = tiny_llama(tokenizer, 0), *label_range
        drawn = mllm.generate(REQUESTS, 8, num_candidates=16, temperature=20.0, only_number=label_range)
        answers = [answer for row in drawn for answer in row]
        scores = [parse_score(answer, label_range) for answer in answers]
        assert all(score is not None and low <= score <= high for score in scores)
        assert len(set(scores)) > 4
        texts = [answer.text.strip() for answer in answers if answer.finished]
        assert texts == [f"{score:.1f}" for score in scores]

    def test_without_a_range_any_number_of_one_digit_may_be_written(self) -> None:
        mllm = tiny_llama(byte_tokenizer(), 0)
        (drawn,) = mllm.generate(REQUESTS[:1], 8, num_candidates=60, temperature=50.0, only_number=True)
        scores = {parse_score(answer) for answer in drawn}
        assert None not in scores
        assert any(abs(score or 0) > 5 for score in scores)

    def test_a_free_model_writes_something_else(self, tokenizer: PreTrainedTokenizerFast) -> None:
        answers = [answer for (answer,) in tiny_llama(tokenizer, 0).generate(REQUESTS, 8)]
        assert all(parse_score(answer) is None for answer in answers)

    def test_the_most_probable_number_is_written_token_by_token(self, tokenizer: PreTrainedTokenizerFast) -> None:
        mllm = tiny_llama(tokenizer, 1)
        grammar, numbers = NumberGrammar(tokenizer, [tokenizer.eos_token_id]), writable_numbers(*MOSI)
        for request, (answer,) in zip(REQUESTS, mllm.generate(REQUESTS, 8, only_number=MOSI), strict=True):
            prompt, tokens = mllm.encode([request])["input_ids"], list[int]()
            entropies, logprobs = [], []
            while not tokens or tokens[-1] != tokenizer.eos_token_id:
                ids = torch.cat([prompt, torch.tensor([tokens], dtype=torch.long)], dim=1)
                with torch.no_grad():
                    distribution = mllm.model(ids).logits[0, -1].log_softmax(-1)
                allowed = grammar.allowed(tokens, numbers)
                tokens.append(max(allowed, key=lambda token: float(distribution[token])))
                entropies.append(float(torch.special.entr(distribution.exp()).sum()))
                logprobs.append(float(distribution[tokens[-1]]))
            assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
            # Of the full vocabulary, so that thresholds of free and of constrained answers compare.
            assert answer.token_entropies == pytest.approx(entropies, abs=1e-4)
            assert answer.token_logprobs == pytest.approx(logprobs, abs=1e-4)

    def test_the_batch_makes_no_difference(self, tokenizer: PreTrainedTokenizerFast) -> None:
        mllm = tiny_llama(tokenizer, 2)
        together = mllm.generate(REQUESTS, 8, only_number=MOSI)
        alone = [mllm.generate([request], 8, only_number=MOSI)[0] for request in REQUESTS]
        assert [row[0].token_texts for row in together] == [row[0].token_texts for row in alone]

    def test_an_answer_needs_room(self) -> None:
        mllm = tiny_llama(byte_tokenizer(), 0)
        assert mllm.generate(REQUESTS[:1], 6, only_number=MOSI)
        with pytest.raises(
            ValueError, match=r"may have 5 tokens, but one of the numbers -3.0 to 3.0 may take 6; allow as many"
        ):
            mllm.generate(REQUESTS[:1], 5, only_number=MOSI)


class TestExpert:
    def test_the_label_range_is_what_it_may_write(self) -> None:
        seen: list[dict[str, Any]] = []

        class Expert:
            name = "expert"

            def generate(
                self, requests: Sequence[MllmRequest], max_new_tokens: int, **options: Any
            ) -> list[list[MllmAnswer]]:
                seen.append(options)
                return [[MllmAnswer("0.4", ("0.4",), (0.2,), (-0.1,))] for _ in requests]

            def embed(self, requests: Sequence[MllmRequest]) -> Any:
                raise NotImplementedError

        for constrained in (False, True):
            model = UacsForSentimentAnalysis(tiny_uacs_config(label_family="sims", expert_constrained=constrained))
            model.set_expert(Expert())
            (found,) = model.ask_expert(REQUESTS[:1])
            assert (found.score, found.uncertainty) == (0.4, 0.2)
        assert seen == [{}, {"only_number": (-1.0, 1.0)}]

    def test_answers_without_room_for_a_score_are_refused_with_the_configuration(self) -> None:
        with pytest.raises(StrictDataclassError, match="may have 5 tokens"):
            UacsConfig(expert_constrained=True, expert_max_new_tokens=5)


@pytest.mark.slow
@pytest.mark.skipif("HF_MSA_SMOLLM2" not in os.environ, reason="HF_MSA_SMOLLM2 names no folder of SmolLM2")
def test_a_trained_model_answers_with_numbers_alone() -> None:
    mllm = LocalMllm.from_pretrained(os.environ["HF_MSA_SMOLLM2"])
    ask = "Score the sentiment from -3 (negative) to 3 (positive), a number with one decimal: "
    requests = [MllmRequest(ask + words) for words in ("I loved it.", "Horrible, a waste of time.", "It is a film.")]
    for (answer,) in some(mllm.generate(requests, 8, only_number=MOSI)):
        assert parse_score(answer, MOSI) is not None, answer.text
        assert answer.finished and all(entropy > 0 for entropy in answer.token_entropies)
