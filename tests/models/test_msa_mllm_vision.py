"""Language models that see: every family with what it needs, and refused in a sentence without."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers.utils.import_utils import is_torchvision_available

from hf_msa.models.msa_mllm import LocalMllm, MllmRequest
from hf_msa.training.lora import AnswerCollator, LoraTrainer, LoraTrainingArguments, MllmExample, target_layers
from nonempty import some
from tiny_mllm import tiny_audio, tiny_frames, tiny_mllm_tokenizer
from tiny_vision_models import FAMILIES, tiny_vision_mllm

NEEDS = dict.fromkeys(FAMILIES, ("torchvision",)) | {"smolvlm": ("torchvision", "num2words"), "gemma3": ()}
ANSWERS = ["1.0", "-0.4", "2.0"]


def requests() -> list[MllmRequest]:
    """Six frames, none, and three at another rate."""
    return [
        MllmRequest("Score?", frames=tiny_frames(1, 6, 40, 60)),
        MllmRequest("Hm?"),
        MllmRequest("And this one?", frames=tiny_frames(2, 3, 40, 60), frames_per_second=0.5),
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> LocalMllm:
    lacking = [name for name in NEEDS[request.param] if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"{request.param} needs {', '.join(lacking)}")
    return tiny_vision_mllm(request.param)


class TestFamilies:
    def test_clips_of_unequal_length_do_not_disturb_each_other(self, mllm: LocalMllm) -> None:
        assert mllm.modalities == ("text", "vision")
        together = mllm.generate(requests(), 3)
        scored, embedded = mllm.score(requests(), ANSWERS), mllm.embed(requests())
        for row, request in some(enumerate(requests())):
            ((alone,),) = mllm.generate([request], 3)
            assert alone.token_entropies == pytest.approx(together[row][0].token_entropies, abs=1e-3)
            (again,) = mllm.score([request], ANSWERS[row : row + 1])
            assert again.token_logprobs == pytest.approx(scored[row].token_logprobs, abs=1e-3)
            assert mllm.embed([request])[0] == pytest.approx(embedded[row], abs=1e-3)

    def test_every_frame_has_a_say_and_so_has_its_time(self, mllm: LocalMllm) -> None:
        frames = tiny_frames(1, 6, 40, 60)
        changed = [frames.copy() for _ in range(6)]
        for index, clip in enumerate(changed):
            clip[index] = 255 - clip[index]
        asked = [MllmRequest("x", frames=clip) for clip in (frames, *changed)]
        vectors = mllm.embed(asked)
        apart = np.abs(vectors[:, None] - vectors).max(-1)
        assert (apart[~np.eye(7, dtype=bool)] > 1e-3).all()
        if mllm.name in ("tiny-qwen3_vl", "tiny-smolvlm"):
            ids = mllm.encode([MllmRequest("x", frames=frames, frames_per_second=0.5)])["input_ids"][0]
            text = mllm.tokenizer.decode(ids)
            times = (
                ["<1.0 seconds>", "<5.0 seconds>", "<9.0 seconds>"]
                if mllm.name == "tiny-qwen3_vl"
                else [f"Frame from 00:{second:02d}:" for second in (0, 2, 4, 6, 8, 10)]
            )
            assert [text.count(time) for time in times] == [1] * len(times)

    def test_the_beginning_of_text_stands_once(self, mllm: LocalMllm) -> None:
        ids = mllm.encode(requests()[:1])["input_ids"][0].tolist()
        assert ids.count(mllm.tokenizer.bos_token_id) == (mllm.name == "tiny-gemma3")

    def test_sound_is_not_taken(self, mllm: LocalMllm) -> None:
        with pytest.raises(ValueError, match="brings audio, which .* does not take; leave audio out"):
            mllm.generate([MllmRequest("x", tiny_audio())], 1)

    def test_the_adapter_sits_in_the_language_model_and_learns(self, mllm: LocalMllm, tmp_path: Path) -> None:
        layers = target_layers(mllm.model)
        assert len(layers) == 8 and not [name for name in layers if "vision" in name or "visual" in name]
        examples = [MllmExample(request, answer) for request, answer in zip(requests(), ANSWERS, strict=True)]
        scored = mllm.score(requests(), ANSWERS)
        tokens = sum(len(answer.token_logprobs) for answer in scored)
        args = LoraTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=3
        )
        trainer = LoraTrainer(mllm, args, examples, "org/base")
        loss = trainer.compute_loss(trainer.adapted.eval(), AnswerCollator(mllm)(examples))
        assert loss.item() == pytest.approx(-sum(answer.logprob for answer in scored) / tokens, abs=1e-3)
        loss.backward()
        learning = {name for name, value in trainer.adapted.named_parameters() if value.grad is not None}
        assert learning and all("lora_" in name for name in learning)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
@pytest.mark.parametrize("kind", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "LlavaOnevision"])
def test_what_needs_torchvision_is_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path)
    tiny_mllm_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": f"{kind}Processor"}))
    parts = {"image_processor_type": "Qwen2VLImageProcessor", "video_processor_type": f"{kind}VideoProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(parts))
    with pytest.raises(
        ImportError, match="needs torchvision, which is not installed: pip install torchvision"
    ) as error:
        _ = LocalMllm.from_pretrained(str(tmp_path)).modalities
    assert "\n" not in str(error.value)
