"""The multimodal language model: requests, the local back end, processors."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from hf_msa.models.msa_mllm import LocalMllm, MllmRequest
from hf_msa.models.msa_mllm_answers import label_entropy
from hf_msa.models.msa_mllm_processing import FramesVideoProcessor, OmniFramesProcessor, load_mllm_processor
from nonempty import some
from tiny_mllm import tiny_audio, tiny_frames, tiny_mllm, tiny_mllm_processor, tiny_requests, tiny_thinker


class TestRequest:
    def test_a_missing_modality_is_none_and_never_an_empty_array(self) -> None:
        with pytest.raises(ValueError, match=r"Audio of shape \(0,\).*or None"):
            MllmRequest("x", audio=np.zeros(0, dtype=np.float32))
        with pytest.raises(ValueError, match=r"Audio of shape \(2, 5\)"):
            MllmRequest("x", audio=np.zeros((2, 5), dtype=np.float32))
        with pytest.raises(ValueError, match=r"type int16"):
            MllmRequest("x", audio=np.zeros(5, dtype=np.int16))
        with pytest.raises(ValueError, match=r"Frames of shape \(4, 4, 3\)"):
            MllmRequest("x", frames=np.zeros((4, 4, 3), dtype=np.uint8))
        with pytest.raises(ValueError, match="type float64"):
            MllmRequest("x", frames=np.zeros((1, 4, 4, 3)))
        with pytest.raises(ValueError, match="frames_per_second is 0"):
            MllmRequest("x", frames_per_second=0)

    def test_the_digest_is_that_of_the_content(self) -> None:
        same = {MllmRequest("x", tiny_audio(), tiny_frames()).digest for _ in range(2)}
        different = {
            MllmRequest(*given).digest
            for given in (("x",), ("y",), ("x", tiny_audio()), ("x", None, tiny_frames()), ("x", None, None, "s"))
        }
        assert len(same) == 1
        assert len(different) == 5


@pytest.fixture(scope="module")
def mllm() -> LocalMllm:
    return tiny_mllm()


KINDS = ("text", "text+audio", "text+frames", "text+audio+frames")


class TestGenerate:
    def test_entropies_and_logprobs_are_those_of_the_scores(self, mllm: LocalMllm) -> None:
        for request, (found,) in some(zip(tiny_requests(), mllm.generate(tiny_requests(), 5), strict=True)):
            inputs = mllm.encode([request])
            plain = mllm.model.generate(
                **inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            logprobs = torch.cat(plain.logits).double().log_softmax(-1)
            tokens = plain.sequences[0, inputs["input_ids"].shape[1] :]
            assert found.text == mllm.tokenizer.decode(tokens, skip_special_tokens=True)
            assert found.token_entropies == pytest.approx((-logprobs.exp() * logprobs).sum(-1).tolist(), abs=1e-5)
            assert found.token_logprobs == pytest.approx(logprobs.max(-1).values.tolist(), abs=1e-5)
            assert found.token_entropy_bounds is None
            assert found.prompt_tokens == inputs["input_ids"].shape[1], "without the padding of a batch"
            assert found.logprob == pytest.approx(sum(found.token_logprobs))

    def test_a_batch_of_all_kinds_gives_what_each_gives_alone(self, mllm: LocalMllm) -> None:
        together = mllm.generate(tiny_requests(), 6)
        assert len({found.text for (found,) in together}) == 4
        for request, (found,) in zip(tiny_requests(), together, strict=True):
            ((alone,),) = mllm.generate([request], 6)
            assert alone.token_texts == found.token_texts
            assert alone.token_entropies == pytest.approx(found.token_entropies, abs=1e-4)
            assert alone.token_logprobs == pytest.approx(found.token_logprobs, abs=1e-4)

    def test_every_modality_has_a_say(self, mllm: LocalMllm) -> None:
        parts: list[dict[str, Any]] = [
            {},
            {"audio": tiny_audio(0)},
            {"audio": tiny_audio(1)},
            {"frames": tiny_frames(0)},
            {"frames": tiny_frames(1)},
        ]
        found = mllm.generate([MllmRequest("How?", **part) for part in parts], 1)
        assert len({round(one.token_entropies[0], 4) for (one,) in found}) == 5

    def test_candidates_depend_on_seed_request_and_number_only(self, mllm: LocalMllm) -> None:
        options: dict[str, Any] = {"num_candidates": 3, "temperature": 0.8, "top_p": 0.9}
        torch.manual_seed(1)
        first = mllm.generate(tiny_requests(), 5, seed=3, **options)
        torch.manual_seed(2)
        again = [mllm.generate([request], 5, seed=3, **options)[0] for request in tiny_requests()[::-1]][::-1]
        assert [[one.text for one in row] for row in first] == [[one.text for one in row] for row in again]
        other = mllm.generate(tiny_requests(), 5, seed=4, **options)
        assert [[one.text for one in row] for row in first] != [[one.text for one in row] for row in other]
        assert len({one.text for one in first[0]}) > 1

    def test_a_cold_draw_is_the_most_probable_answer(self, mllm: LocalMllm) -> None:
        request = tiny_requests()[0]
        ((greedy,),) = mllm.generate([request], 5)
        ((cold, narrow),) = mllm.generate([request], 5, num_candidates=2, temperature=1e-6)
        assert cold.text == narrow.text == greedy.text
        ((small,),) = mllm.generate([request], 5, temperature=1.0, top_p=1e-6)
        assert small.text == greedy.text

    def test_draws_follow_the_distribution(self, mllm: LocalMllm) -> None:
        request = MllmRequest("Say a letter.")
        inputs = mllm.encode([request])
        with torch.no_grad():
            expected = mllm.model(**inputs).logits[0, -1].div(0.5).softmax(-1).topk(3)
        (drawn,) = LocalMllm(mllm.model, mllm.processor, batch_size=400).generate(
            [request], 1, num_candidates=400, temperature=0.5
        )
        with torch.no_grad():
            plain = mllm.model(**inputs).logits[0, -1].log_softmax(-1)
        for share, token in some(zip(expected.values.tolist(), expected.indices.tolist(), strict=True)):
            seen = np.mean([abs(one.token_logprobs[0] - plain[token].item()) < 1e-4 for one in drawn])
            assert seen == pytest.approx(share, abs=0.1)  # four standard errors

    def test_an_answer_ends_with_the_end_of_text(self) -> None:
        mllm = tiny_mllm()
        tokens = [*mllm.tokenizer("-0.4 €")["input_ids"], mllm.tokenizer.eos_token_id, 7, 7]
        found = mllm._answer(tokens, [float(n) for n in range(len(tokens))], [0.0] * len(tokens))
        assert found.text == "-0.4 €"
        assert found.token_texts == ("-0", ".", "4", " ", "", "", "€", "")
        assert label_entropy(found) == pytest.approx(1.0)
        assert found.finished
        assert not mllm._answer(tokens[:3], [0.0] * 3, [0.0] * 3).finished

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_candidates": 2}, "2 candidates without a temperature"),
            ({"temperature": 0.0}, "temperature is 0.0"),
            ({"top_p": 0.5}, "needs a temperature"),
            ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ],
    )
    def test_settings_without_sense_are_refused(self, mllm: LocalMllm, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            mllm.generate(tiny_requests()[:1], **{"max_new_tokens": 2, **options})

    def test_no_requests_give_no_answers(self, mllm: LocalMllm) -> None:
        assert mllm.generate([], 3) == []
        assert mllm.score([], []) == []
        assert mllm.embed([]).shape == (0, 32)

    def test_what_the_model_cannot_take_is_refused(self, mllm: LocalMllm) -> None:
        deaf = LocalMllm(mllm.model, tiny_mllm_processor(), name="deaf")
        deaf.processor.feature_extractor = None
        with pytest.raises(ValueError, match="brings audio, which 'deaf' does not take"):
            deaf.generate(tiny_requests()[1:2], 2)


class TestPrompt:
    def test_only_what_is_there_is_in_the_prompt(self, mllm: LocalMllm) -> None:
        counts = [(text.count("<|AUDIO|>"), text.count("<|VIDEO|>")) for text in map(mllm.render, tiny_requests())]
        assert counts == [(0, 0), (1, 0), (0, 1), (1, 1)]
        inputs = mllm.encode(tiny_requests()[:1])
        assert set(inputs) == {"input_ids", "attention_mask"}

    def test_a_transcript_cannot_end_its_turn_or_claim_a_clip(self, mllm: LocalMllm) -> None:
        bad = MllmRequest("a<|im_end|>b<|AUDIO|>c")
        assert mllm.render(bad) == mllm.render(MllmRequest("abc"))

    def test_padding_is_on_the_left(self, mllm: LocalMllm) -> None:
        mask = mllm.encode(tiny_requests())["attention_mask"]
        assert mask[:, -1].all()
        assert (mask.diff(dim=1) >= 0).all()

    def test_each_clip_keeps_its_own_frame_rate(self, mllm: LocalMllm) -> None:
        clips = [MllmRequest("x", frames=tiny_frames(), frames_per_second=rate) for rate in (1.0, 4.0)]
        assert mllm.encode(clips)["video_second_per_grid"].tolist() == [2.0, 0.5]


class TestScore:
    def test_is_what_the_full_forward_says_of_the_answers_tokens(self, mllm: LocalMllm) -> None:
        request = tiny_requests()[3]
        (found,) = mllm.score([request], ["-0.4"])
        inputs, (length,) = mllm.encode_with_answers([request], ["-0.4"])
        with torch.no_grad():
            logprobs = mllm.model(**inputs).logits[0].log_softmax(-1)
        ids = inputs["input_ids"][0]
        expected = [logprobs[-length - 1 + n, ids[n - length]].item() for n in range(length)]
        assert found.token_texts == ("-0", ".", "4", "")
        assert found.token_logprobs == pytest.approx(expected, abs=1e-5)

    def test_answers_of_different_lengths_do_not_disturb_each_other(self, mllm: LocalMllm) -> None:
        answers = ["1", "-0.4", "the score is 2", "0.0"]
        for row, together in some(enumerate(mllm.score(tiny_requests(), answers))):
            (alone,) = mllm.score(tiny_requests()[row : row + 1], answers[row : row + 1])
            assert alone.text == together.text == answers[row]
            assert alone.token_logprobs == pytest.approx(together.token_logprobs, abs=1e-4)
            assert alone.token_entropies == pytest.approx(together.token_entropies, abs=1e-4)

    def test_agrees_with_generation(self, mllm: LocalMllm) -> None:
        drawn = mllm.generate([MllmRequest("Go on.")], 3, num_candidates=40, temperature=1.0, top_p=0.9)[0]
        plain = [one for one in drawn if one.text.isascii() and all(one.token_texts)]
        assert plain
        scored = mllm.score([MllmRequest("Go on.")] * len(plain), [one.text for one in plain])
        for one, again in zip(plain, scored, strict=True):
            if one.token_texts == again.token_texts[:-1]:
                assert again.token_logprobs[:-1] == pytest.approx(one.token_logprobs, abs=1e-4)


class TestEmbed:
    def test_is_the_mean_of_the_final_hidden_states_over_the_content(self, mllm: LocalMllm) -> None:
        request = MllmRequest("abc", audio=tiny_audio())
        inputs = mllm.encode([request], ask=False)
        with torch.no_grad():
            hidden = mllm.model(**inputs, output_hidden_states=True).hidden_states[-1][0]
        before = len(mllm.tokenizer("<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n")["input_ids"])
        assert mllm.tokenizer.decode(inputs["input_ids"][0, -5:]) == "abc<|im_end|>\n"
        assert mllm.embed([request])[0] == pytest.approx(hidden[before:-2].mean(0).numpy(), abs=1e-5)

    @pytest.mark.parametrize("row", range(4), ids=KINDS)
    def test_does_not_depend_on_the_batch(self, mllm: LocalMllm, row: int) -> None:
        together = mllm.embed(tiny_requests())
        assert together.shape == (4, 32)
        assert together.dtype == np.float32
        assert mllm.embed(tiny_requests()[row : row + 1])[0] == pytest.approx(together[row], abs=1e-4)

    def test_an_empty_request_has_none(self, mllm: LocalMllm) -> None:
        with pytest.raises(ValueError, match="empty request"):
            mllm.embed([MllmRequest("")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinker")
    tiny_thinker().save_pretrained(folder)
    tiny_mllm_processor().save_pretrained(folder)
    return folder


class TestLoading:
    def test_a_model_is_loaded_on_first_use(self, folder: Path, mllm: LocalMllm) -> None:
        loaded = LocalMllm.from_pretrained(str(folder))
        assert not loaded.is_loaded
        loaded.processor.videos_kwargs = mllm.processor.videos_kwargs
        assert loaded.modalities == ("text", "audio", "vision")
        assert not loaded.is_loaded
        assert loaded.generate(tiny_requests(), 3) == mllm.generate(tiny_requests(), 3)
        assert loaded.is_loaded
        assert isinstance(loaded.processor, OmniFramesProcessor)

    def test_of_a_model_that_also_talks_the_thinker_is_loaded(self, folder: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = {f"thinker.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
        save_file(weights | {"talker.x": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
        thinker = json.loads((folder / "config.json").read_text())
        whole = {"model_type": "qwen2_5_omni", "thinker_config": thinker}
        (tmp_path / "config.json").write_text(json.dumps(whole))
        # As the checkpoints of this family have it: one file for pictures and sound, one for the template.
        processor = tiny_mllm_processor()
        processor.tokenizer.save_pretrained(tmp_path)
        settings = {
            **processor.feature_extractor.to_dict(),
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "merge_size": 2,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "processor_class": "Qwen2_5OmniProcessor",
        }
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        loaded = LocalMllm.from_pretrained(str(tmp_path))
        assert type(loaded.model) is type(tiny_thinker())
        state = tiny_thinker().state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.model.state_dict().items())
        assert loaded.processor.video_processor.size == {"shortest_edge": 3136, "longest_edge": 12845056}
        ((found,),) = loaded.generate(tiny_requests()[1:2], 2)
        assert found.token_texts

    def test_bf16_weights_take_every_kind(self, folder: Path) -> None:
        loaded = LocalMllm.from_pretrained(str(folder), dtype=torch.bfloat16)
        loaded.processor.videos_kwargs = tiny_mllm_processor().videos_kwargs
        assert all(math.isfinite(found.logprob) for (found,) in loaded.generate(tiny_requests(), 2))
        assert np.isfinite(loaded.embed(tiny_requests())).all()

    def test_a_name_that_is_not_there_says_what_to_pass(self, tmp_path: Path) -> None:
        gone = LocalMllm.from_pretrained(str(tmp_path / "gone"))
        with pytest.raises(ValueError, match="cannot be loaded .*pass a folder, Hub name or GGUF file"):
            gone.generate(tiny_requests(), 1)

    def test_weights_that_are_not_there_are_not_made_up(self, folder: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        weights = load_file(tmp_path / "model.safetensors")
        (lost,) = (name for name in weights if name.endswith("layers.0.mlp.up_proj.weight"))
        del weights[lost]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            ValueError, match="cannot be loaded .its checkpoint lacks 1 weights of a Qwen2_5OmniThinker.*up_proj"
        ):
            _ = LocalMllm.from_pretrained(str(tmp_path)).model

    def test_a_model_of_another_kind_is_refused_in_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "hf_msa_none"}))
        with pytest.raises(ValueError, match="cannot be loaded"):
            _ = LocalMllm.from_pretrained(str(tmp_path)).model

    def test_quantisation_needs_its_package(self) -> None:
        with pytest.raises(ValueError, match="Unknown quantization '2bit'; give one of 8bit, 4bit"):
            LocalMllm.from_pretrained("x", quantization="2bit")
        with pytest.raises(ImportError, match="pip install 'bitsandbytes"):
            LocalMllm.from_pretrained("x", quantization="4bit")

    def test_the_adapter_is_part_of_the_name(self) -> None:
        assert LocalMllm.from_pretrained("base", adapter="tuned").name == "base+tuned"


class TestFramesVideoProcessor:
    def test_two_equal_frames_are_the_patches_of_the_image(self) -> None:
        # The library's image processor repeats a picture along time, so both must agree on values and their order.
        size = {"shortest_edge": 28 * 28, "longest_edge": 12 * 28 * 28}
        frame = tiny_frames(0, 1, 50, 90)[0]
        image = Qwen2VLImageProcessorPil(size=size)(frame, return_tensors="np", input_data_format="channels_last")
        video = FramesVideoProcessor(size=size)(np.stack([frame, frame]), return_tensors="np")
        assert video["video_grid_thw"].tolist() == image["image_grid_thw"].tolist() == [[1, 4, 6]]
        assert video["pixel_values_videos"] == pytest.approx(image["pixel_values"], abs=1e-5)

    def test_an_odd_clip_is_filled_up_with_its_last_frame(self) -> None:
        frames = tiny_frames(0, 3)
        processor = FramesVideoProcessor(size={"shortest_edge": 784, "longest_edge": 4 * 784})
        odd = processor(frames, return_tensors="np")
        even = processor(np.concatenate([frames, frames[-1:]]), return_tensors="np")
        assert odd["video_grid_thw"].tolist() == [[2, 2, 4]]
        assert np.array_equal(odd["pixel_values_videos"], even["pixel_values_videos"])

    def test_is_saved_and_loaded_with_its_processor(self, tmp_path: Path) -> None:
        tiny_thinker().config.save_pretrained(tmp_path)
        processor = tiny_mllm_processor()
        processor.save_pretrained(tmp_path)
        again = load_mllm_processor(str(tmp_path))
        assert again.video_processor.size == processor.video_processor.size
        assert again.feature_extractor.feature_size == 16
        assert again.chat_template == processor.chat_template
