"""Adapters: where they sit, what they learn from, that they can be resumed, saved and loaded."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_msa.errors import MsaError
from hf_msa.models.msa_mllm import LocalMllm, MllmRequest
from hf_msa.training.lora import (
    AnswerCollator,
    LoraSettings,
    LoraTrainer,
    LoraTrainingArguments,
    MllmExample,
    attach_adapter,
    save_adapter,
    target_layers,
    training_facts,
)
from nonempty import some
from tiny_mllm import tiny_mllm, tiny_requests
from tiny_text_models import tiny_text_mllm

ANSWERS = ["-0.4", "1.2", "0.0", "2.0"]


def examples() -> list[MllmExample]:
    return [MllmExample(request, answer) for request, answer in zip(tiny_requests(), ANSWERS, strict=True)]


def arguments(folder: Path, **overrides: Any) -> LoraTrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 5e-2,
        "disable_tqdm": True,
    }
    return LoraTrainingArguments(**{**values, **overrides})


def losses(trainer: LoraTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoraTrainer, LocalMllm, Path]]:
    """A trained adapter, the model that holds it, and the folder of the run."""
    folder = tmp_path_factory.mktemp("lora")
    mllm = tiny_mllm()
    trainer = LoraTrainer(mllm, arguments(folder), examples(), "org/base")
    trainer.fit()
    yield trainer, mllm, folder


class TestAttaching:
    def test_only_the_language_models_attention_gets_an_adapter(self) -> None:
        wrapped = attach_adapter(tiny_mllm().model, "org/base")
        names = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
        expected = {
            f"base_model.model.model.language_model.layers.{layer}.self_attn.{part}_proj.lora_{side}.default.weight"
            for layer in range(2)
            for part in "qkvo"
            for side in "AB"
        }
        assert names == expected
        assert not [name for name, _ in wrapped.named_modules() if "lora" in name and "language_model" not in name]
        layer = wrapped.base_model.model.model.language_model.layers[0].self_attn.q_proj
        assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (16, 2.0, 0.05)

    def test_a_fresh_adapter_changes_nothing(self) -> None:
        mllm = tiny_mllm()
        before = mllm.score(tiny_requests(), ANSWERS)
        embedded = mllm.embed(tiny_requests())
        attach_adapter(mllm.model, "org/base")
        assert mllm.score(tiny_requests(), ANSWERS) == before
        assert np.array_equal(mllm.embed(tiny_requests()), embedded)

    @pytest.mark.parametrize(
        ("family", "layers"),
        [
            ("qwen2", {"q_proj", "k_proj", "v_proj", "o_proj"}),
            ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}),
            ("gemma3_text", {"q_proj", "k_proj", "v_proj", "o_proj"}),
            ("phi3", {"qkv_proj", "o_proj"}),
            ("gpt2", {"c_attn", "c_proj"}),
            ("gpt_neox", {"query_key_value", "dense"}),
            ("falcon", {"query_key_value", "dense"}),
            ("qwen2_moe", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ],
    )
    def test_other_families_call_their_layers_otherwise(self, family: str, layers: set[str]) -> None:
        mllm = tiny_text_mllm(family)
        requests = [MllmRequest("How is it?"), MllmRequest("Score?")]
        before = mllm.score(requests, ["1.0", "-0.4"])
        found = target_layers(mllm.model)
        assert {name.rsplit(".")[-1] for name in found} == layers and len(found) == 2 * len(layers)
        assert not [name for name in found if "mlp" in name or "expert" in name]
        wrapped = attach_adapter(mllm.model, "org/base")
        adapted = {
            name.removeprefix("base_model.model.")
            for name, module in wrapped.named_modules()
            if "lora_A" in dir(module)
        }
        assert adapted == set(found)
        for one, again in some(zip(before, mllm.score(requests, ["1.0", "-0.4"]), strict=True)):
            assert again.token_logprobs == pytest.approx(one.token_logprobs, abs=1e-5)

    def test_layers_can_be_named_but_only_those_of_the_language_model(self) -> None:
        model = tiny_mllm().model
        named = target_layers(model, "q_proj, v_proj")
        assert named == [
            f"model.language_model.layers.{layer}.self_attn.{part}_proj" for layer in range(2) for part in "qv"
        ]
        assert target_layers(model, r".*\.1\.mlp\.(up|down)_proj") == [
            f"model.language_model.layers.1.mlp.{part}_proj" for part in ("up", "down")
        ]
        with pytest.raises(
            MsaError, match=r"No layer of the language model .*\('qkv'\); give target_modules as last parts"
        ):
            target_layers(model, "qkv")

    def test_shapes_out_of_range_are_refused(self, tmp_path: Path) -> None:
        for wrong in ({"lora_rank": 0}, {"lora_alpha": 0}, {"lora_dropout": 1.0}):
            with pytest.raises(ValueError, match="lora_rank is .* lora_alpha .* and lora_dropout"):
                arguments(tmp_path, **wrong)

    def test_a_model_without_such_layers_is_refused(self) -> None:
        with pytest.raises(MsaError, match="can take the adapter.*give target_modules"):
            attach_adapter(tiny_mllm().model, "org/base", LoraSettings(target_modules=r".*\.nothing"))


class TestCollator:
    def test_labels_are_the_answers_and_their_ends(self) -> None:
        mllm = tiny_mllm()
        batch = AnswerCollator(mllm)(examples())
        end = mllm.tokenizer.eos_token
        for row, answer in some(enumerate(ANSWERS)):
            labels = batch["labels"][row]
            real = labels != -100
            assert mllm.tokenizer.decode(labels[real]) == f"{answer}{end}"
            assert torch.equal(labels[real], batch["input_ids"][row][real])
            assert batch["attention_mask"][row][real].all()

    def test_the_loss_is_that_of_the_answers(self) -> None:
        mllm = tiny_mllm()
        batch = AnswerCollator(mllm)(examples())
        with torch.no_grad():
            loss = mllm.model(**batch).loss.item()
        scored = mllm.score(tiny_requests(), ANSWERS)
        tokens = sum(len(answer.token_logprobs) for answer in scored)
        assert loss == pytest.approx(-sum(answer.logprob for answer in scored) / tokens, abs=1e-4)


class TestTraining:
    def test_lowers_the_loss_and_changes_the_answers(self, trained: tuple[LoraTrainer, LocalMllm, Path]) -> None:
        trainer, mllm, _ = trained
        assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
        learned = [answer.logprob for answer in mllm.score(tiny_requests(), ANSWERS)]
        before = [answer.logprob for answer in tiny_mllm().score(tiny_requests(), ANSWERS)]
        assert all(new > old + 1 for new, old in zip(learned, before, strict=True))

    def test_leaves_the_base_as_it_was(self, trained: tuple[LoraTrainer, LocalMllm, Path]) -> None:
        base = tiny_mllm().model.state_dict()
        for name, value in some(trained[1].model.state_dict().items()):
            if "lora_" not in name:
                assert torch.equal(value, base[name.replace(".base_layer", "")])

    def test_a_killed_run_ends_as_one_that_was_not(
        self, trained: tuple[LoraTrainer, LocalMllm, Path], tmp_path: Path
    ) -> None:
        trainer, _, folder = trained
        middle = folder / "checkpoint-6"
        assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
        assert {"adapter_model.safetensors", "complete.json"} <= {path.name for path in middle.iterdir()}
        assert not list(middle.glob("*.bin"))
        shutil.copytree(middle, tmp_path / middle.name)
        (tmp_path / "checkpoint-7").mkdir()  # being written when the run was killed
        again = LoraTrainer(tiny_mllm(), arguments(tmp_path), examples(), "org/base")
        again.fit()
        assert losses(again) == pytest.approx(losses(trainer), abs=1e-4)
        there = dict(trainer.adapted.named_parameters())
        for name, value in again.adapted.named_parameters():
            assert torch.allclose(value, there[name], atol=1e-5), name

    def test_activation_checkpointing_learns_the_same(self, tmp_path: Path) -> None:
        weights = []
        for checkpointing in (False, True):
            args = arguments(
                tmp_path / str(checkpointing),
                activation_checkpointing=checkpointing,
                max_steps=1,
                save_strategy="no",
                learning_rate=1e-3,
                lora_dropout=0.0,
            )
            trainer = LoraTrainer(tiny_mllm(), args, examples()[:2], "org/base")
            trainer.fit()
            assert trainer.adapted.is_activation_checkpointing == checkpointing
            weights.append([value.detach().clone() for value in trainer.adapted.parameters() if value.requires_grad])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*weights, strict=True))
        assert any(value.abs().max() > 0 for value in weights[0][1::2])

    def test_the_epoch_with_the_best_validation_loss_remains(self, tmp_path: Path) -> None:
        """At this rate other answers end up less probable than they were."""
        mllm = tiny_text_mllm()
        learnt = [MllmExample(MllmRequest(f"clip {number}"), "1.0") for number in range(4)]
        unlike = [MllmExample(MllmRequest(f"clip {number}"), "-0.4") for number in range(3)]
        args = arguments(tmp_path, num_train_epochs=6, learning_rate=5e-2, lora_rank=2, save_total_limit=1)
        trainer = LoraTrainer(mllm, args, learnt, "org/base", unlike)
        state = trainer.fit()
        measured = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        best = measured.index(min(measured))
        assert len(measured) == 6 and measured[best] < measured[-1] - 0.1
        assert state.best_global_step == training_facts(state)["best_step"] == 2 * (best + 1)
        scored = mllm.score([one.request for one in unlike], [one.answer for one in unlike])
        tokens = sum(len(answer.token_logprobs) for answer in scored)
        assert -sum(answer.logprob for answer in scored) / tokens == pytest.approx(measured[best], abs=1e-4)
        assert trainer.adapted.peft_config["default"].r == 2

    @pytest.mark.parametrize("family", ["qwen2", "gpt2"])
    def test_logits_of_the_answers_alone_give_the_same_loss(self, family: str, tmp_path: Path) -> None:
        mllm = tiny_text_mllm(family)
        given = [
            MllmExample(MllmRequest(one.prompt), answer) for one, answer in zip(tiny_requests(), ANSWERS, strict=True)
        ]
        trainer = LoraTrainer(mllm, arguments(tmp_path), given, "org/base")
        batch = AnswerCollator(mllm)(given)
        widths: list[int] = []
        hook = mllm.model.get_output_embeddings().register_forward_hook(lambda *a: widths.append(a[2].shape[1]))
        with torch.no_grad():
            whole, short = mllm.model(**batch).loss, trainer.compute_loss(trainer.adapted.eval(), batch)
        hook.remove()
        assert short.item() == pytest.approx(whole.item(), abs=1e-5)
        # "1.2" and the end of text are four tokens, before which stands the one that gives the first of them.
        assert widths == [batch["labels"].shape[1], 5]

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
    def test_what_all_rows_begin_with_is_computed_once_and_learns_the_same(
        self, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Gemma's windows keep no keys of everything, so it goes the long way."""
        found = []
        for least in (16, 10**9):
            monkeypatch.setattr("hf_msa.models.msa_mllm._SHARED_AT_LEAST", least)
            mllm = tiny_text_mllm(family)
            given = [
                MllmExample(MllmRequest(f"{'The same instruction. ' * 4}{one.prompt}"), answer)
                for one, answer in zip(tiny_requests(), ANSWERS, strict=True)
            ]
            trainer = LoraTrainer(mllm, arguments(tmp_path, lora_dropout=0.0), given, "org/base")
            widths: list[int] = []
            embeddings = mllm.model.get_input_embeddings()
            embeddings.register_forward_hook(lambda *a, widths=widths: widths.append(a[2].shape[0] * a[2].shape[1]))
            loss = trainer.compute_loss(trainer.adapted.eval(), AnswerCollator(mllm)(given))
            loss.backward()
            gradients = [value.grad for value in trainer.adapted.parameters() if value.grad is not None]
            found.append((loss.item(), gradients, sum(widths)))
        (loss_shared, shared, few), (loss_whole, whole, many) = found
        assert loss_shared == pytest.approx(loss_whole, abs=1e-5)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in some(zip(shared, whole, strict=True)))
        assert few == many if family == "gemma3_text" else few < 0.6 * many

    def test_batches_are_of_like_length(self, tmp_path: Path) -> None:
        given = [MllmExample(MllmRequest("a" * length), "1.0") for length in (9, 90, 8, 91)]
        trainer = LoraTrainer(
            tiny_text_mllm(),
            arguments(tmp_path),
            given,
            "org/base",
            lengths=[len(one.request.prompt) for one in given],
        )
        real = [batch["attention_mask"].sum(1) for batch in trainer.get_train_dataloader()]
        assert sorted((max(one) - min(one)).item() for one in real) == [1, 1]

    def test_nothing_to_learn_from_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(MsaError, match="no examples"):
            LoraTrainer(tiny_mllm(), arguments(tmp_path), [], "org/base")


class TestSaving:
    def test_is_loaded_bit_equal(self, trained: tuple[LoraTrainer, LocalMllm, Path], tmp_path: Path) -> None:
        trainer, mllm, _ = trained
        save_adapter(trainer.adapted, tmp_path / "adapter")
        names = {path.name for path in (tmp_path / "adapter").iterdir()}
        assert names == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "org/base"
        assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == 16
        expected = mllm.score(tiny_requests(), ANSWERS)

        # The way that needs transformers' own loader alone, as `LocalMllm.from_pretrained(adapter=)` goes.
        base = tmp_path / "base"
        plain = tiny_mllm()
        plain.model.save_pretrained(base)
        plain.processor.save_pretrained(base)
        loaded = LocalMllm.from_pretrained(str(base), adapter=str(tmp_path / "adapter"))
        loaded.processor.videos_kwargs = plain.processor.videos_kwargs
        assert loaded.score(tiny_requests(), ANSWERS) == expected

    def test_an_adapter_with_a_weight_less_is_refused(
        self, trained: tuple[LoraTrainer, LocalMllm, Path], tmp_path: Path
    ) -> None:
        adapter, plain = tmp_path / "adapter", tiny_mllm()
        save_adapter(trained[0].adapted, adapter)
        weights = load_file(adapter / "adapter_model.safetensors")
        del weights[min(weights)]
        save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
        plain.model.save_pretrained(tmp_path / "base")
        plain.processor.save_pretrained(tmp_path / "base")
        with pytest.raises(ValueError, match="cannot be loaded onto .*1 weights are in one of them alone.*lora_A"):
            _ = LocalMllm.from_pretrained(str(tmp_path / "base"), adapter=str(adapter)).model

    def test_an_adapter_that_does_not_load_names_both(self, tmp_path: Path) -> None:
        plain = tiny_mllm()
        plain.model.save_pretrained(tmp_path / "base")
        plain.processor.save_pretrained(tmp_path / "base")
        wrong = LocalMllm.from_pretrained(str(tmp_path / "base"), adapter=str(tmp_path))
        with pytest.raises(ValueError, match="The adapter .* cannot be loaded onto"):
            wrong.generate([MllmRequest("x")], 1)
