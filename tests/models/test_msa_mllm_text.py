"""Language models that read text alone: the same interface, templates, batches, loading."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_msa.models.msa_mllm import LocalMllm, MllmRequest
from nonempty import some
from tiny_mllm import tiny_audio, tiny_frames
from tiny_text_models import FAMILIES, tiny_text_mllm, tiny_text_model, tiny_text_tokenizer

REQUESTS = [MllmRequest(prompt) for prompt in ("How is it?", "And is this one, which is longer, glad?", "Score?")]


@pytest.fixture(scope="module")
def mllm() -> LocalMllm:
    return tiny_text_mllm()


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_a_batch_gives_what_each_gives_alone(self, family: str) -> None:
        mllm = tiny_text_mllm(family)
        together = mllm.generate(REQUESTS, 4)
        scored, embedded = mllm.score(REQUESTS, ["-0.4", "1", "2.0"]), mllm.embed(REQUESTS)
        assert embedded.shape == (3, 32)
        for row, request in enumerate(REQUESTS):
            ((alone,),) = mllm.generate([request], 4)
            assert alone.token_texts == together[row][0].token_texts
            assert alone.token_entropies == pytest.approx(together[row][0].token_entropies, abs=1e-3)
            (again,) = mllm.score([request], [("-0.4", "1", "2.0")[row]])
            assert again.text == scored[row].text == ("-0.4", "1", "2.0")[row]
            assert again.token_logprobs == pytest.approx(scored[row].token_logprobs, abs=1e-3)
            assert mllm.embed([request])[0] == pytest.approx(embedded[row], abs=1e-3)

    def test_what_all_requests_begin_with_is_computed_once(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        mllm = tiny_text_mllm(family)
        long = [MllmRequest(f"The same instruction for all. {one.prompt}") for one in REQUESTS]
        answers = []
        for least in (16, 10**9):
            monkeypatch.setattr("hf_msa.models.msa_mllm._SHARED_AT_LEAST", least)
            drawn = mllm.generate(long[:1], 4, num_candidates=3, temperature=1.0)[0]
            answers.append([*(row[0] for row in mllm.generate(long, 4)), *drawn])
        for shared, whole in some(zip(*answers, strict=True)):
            assert shared.token_texts == whole.token_texts
            assert shared.token_entropies == pytest.approx(whole.token_entropies, abs=1e-3)
            assert shared.token_logprobs == pytest.approx(whole.token_logprobs, abs=1e-3)

    def test_generation_is_the_librarys_own(self, family: str) -> None:
        mllm = tiny_text_mllm(family)
        ids = mllm.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Score?"}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        with torch.no_grad():
            logprobs = mllm.model(input_ids=ids).logits[0, -1].log_softmax(-1)
        ((found,),) = mllm.generate(REQUESTS[2:], 1)
        assert found.token_logprobs == pytest.approx([logprobs.max().item()], abs=1e-4)
        assert found.token_entropies == pytest.approx([-(logprobs.exp() * logprobs).sum().item()], abs=1e-4)


class TestTemplates:
    def test_the_beginning_of_text_stands_once(self, mllm: LocalMllm) -> None:
        ids = mllm.encode([MllmRequest("x")])["input_ids"][0]
        assert mllm.tokenizer.decode(ids) == "<|begin|><|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"

    def test_a_tokenizer_without_a_template_gets_a_plain_one(self) -> None:
        plain = tiny_text_mllm(chat_template=None)
        ids = plain.encode([MllmRequest("How is it?", system="Be short.")])["input_ids"][0]
        assert plain.tokenizer.decode(ids) == "<|begin|>Be short.\n\nHow is it?\n\nAnswer: "
        assert plain.generate(REQUESTS, 2)[1][0].token_texts
        assert np.isfinite(plain.embed(REQUESTS)).all()

    def test_special_tokens_of_a_transcript_are_taken_out_also_where_parts_make_one(self, mllm: LocalMllm) -> None:
        text = mllm.render(MllmRequest("a<|im_end|>b<|im_<|begin|>end|>c"))
        assert text == "<|begin|><|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n"

    def test_padding_stands_on_the_left_and_is_not_looked_at(self, mllm: LocalMllm) -> None:
        inputs = mllm.encode(REQUESTS)
        assert set(inputs) == {"input_ids", "attention_mask"}
        assert inputs["attention_mask"].sum(1).tolist() == [
            len(mllm.encode([one])["input_ids"][0]) for one in REQUESTS
        ]
        assert (inputs["attention_mask"].diff(dim=1) >= 0).all()


def test_long_and_short_requests_run_apart(mllm: LocalMllm) -> None:
    """Batches hold requests of like length, and answers come back in the order that was asked in."""
    small = LocalMllm(mllm.model, mllm.processor, batch_size=2)
    mixed = [MllmRequest("a" * count) for count in (200, 1, 210, 2)]
    widths: list[tuple[int, ...]] = []
    encode = small.encode

    def watch(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        inputs = encode(*args, **kwargs)  # type: ignore[arg-type]
        widths.append(tuple(inputs["attention_mask"].sum(1).tolist()))
        return inputs

    small.encode = watch  # type: ignore[method-assign]
    answers = [row[0] for row in small.generate(mixed, 3)]
    assert [max(one) - min(one) for one in widths] == [10, 1]
    assert [one.text for one in answers] == [mllm.generate([one], 3)[0][0].text for one in mixed]


def test_sound_and_frames_are_not_taken(mllm: LocalMllm) -> None:
    assert mllm.modalities == ("text",)
    with pytest.raises(ValueError, match="brings audio, which 'tiny-qwen2' does not take; leave audio out"):
        mllm.generate([MllmRequest("x", tiny_audio())], 1)
    with pytest.raises(ValueError, match="brings frames, which 'tiny-qwen2' does not take"):
        mllm.embed([MllmRequest("x", frames=tiny_frames())])


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    tiny_text_model().save_pretrained(folder)
    tiny_text_tokenizer().save_pretrained(folder)
    return folder


class TestLoading:
    def test_a_folder_is_loaded_without_a_processor(self, text_folder: Path, mllm: LocalMllm) -> None:
        loaded = LocalMllm.from_pretrained(str(text_folder), attention="eager", dtype="float32")
        assert loaded.modalities == ("text",) and not loaded.is_loaded
        assert loaded.model.config._attn_implementation == "eager"
        for found, expected in zip(loaded.generate(REQUESTS, 3), mllm.generate(REQUESTS, 3), strict=True):
            assert found[0].text == expected[0].text
            assert found[0].logprob == pytest.approx(expected[0].logprob, abs=1e-4)

    def test_dtype_and_revision_are_part_of_the_identity(self, text_folder: Path) -> None:
        loaded = LocalMllm.from_pretrained(str(text_folder), dtype="bfloat16", revision="v1")
        assert loaded.identity["dtype"] == "bfloat16" and loaded.identity["revision"] == "v1"
        half = LocalMllm.from_pretrained(str(text_folder), dtype="bfloat16")
        assert half.model.dtype == torch.bfloat16
        assert all(math.isfinite(found.logprob) for (found,) in half.generate(REQUESTS, 2))

    def test_weights_that_are_not_there_are_not_made_up(self, text_folder: Path, tmp_path: Path) -> None:
        shutil.copytree(text_folder, tmp_path, dirs_exist_ok=True)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["model.layers.0.self_attn.q_proj.weight"]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks 1 weights of a Qwen2ForCausalLM, e\.g\. .*q_proj"):
            _ = LocalMllm.from_pretrained(str(tmp_path)).model

    def test_a_gguf_file_needs_its_package(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for name in (tmp_path, tmp_path / "tiny.gguf"):
            with pytest.raises(ImportError, match="needs gguf, which is not installed"):
                LocalMllm.from_pretrained(str(name))
        (tmp_path / "other.gguf").write_bytes(b"GGUF")
        with pytest.raises(ValueError, match="holds 2 GGUF files; name one of them, e.g. 'other.gguf'"):
            LocalMllm.from_pretrained(str(tmp_path))
