"""Training of CMC: labels and teachers that move, what is kept of each modality, and resuming in the middle of it."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, TrainerCallback

from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.methods import METHODS
from hf_msa.models.modeling_cmc import CmcForSentimentAnalysis, CmcUnimodalModels
from hf_msa.models.msa_label_families import BUILT_IN
from hf_msa.training.cmc.pseudo_labels import updated_labels
from hf_msa.training.cmc.stages import CmcTrainer, CmcUnimodalTrainer, first_labels
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import RunContext, prepare_run, run_recipe
from hf_msa.training.text_states import TextStates, compute_text_states
from nonempty import some

QUIET = {"disable_tqdm": True, "use_cpu": True}
MODALITIES = ("text", "audio", "vision")
SMALL = [
    "model.embed_dim=8",
    "model.feedforward_dim=16",
    "model.encoder_layers=1",
    "model.num_attention_heads=2",
    "stages.unimodal.num_train_epochs=3",
    "stages.main.num_train_epochs=1",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of this module's own: other tests change the text encoder of theirs."""
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7, version=1)


def prepared(corpus: Path, folder: Path, *assignments: str, ablation: str | None = None) -> RunContext:
    recipe = load_recipe("cmc/sample", ablation=ablation, assignments=[*SMALL, *assignments])
    return prepare_run(recipe, str(corpus), folder, 1, QUIET)


def whole_run(corpus: Path, folder: Path, *assignments: str, ablation: str | None = None) -> RunContext:
    recipe = load_recipe("cmc/sample", ablation=ablation, assignments=[*SMALL, *assignments])
    return run_recipe(recipe, str(corpus), folder, 1, QUIET)


def products(context: RunContext) -> dict[str, torch.Tensor]:
    return load_file(context.stage_folder("unimodal") / "pseudo_labels.safetensors")


def stage_weights(context: RunContext, stage: str) -> dict[str, torch.Tensor]:
    return load_file(context.stage_folder(stage) / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def row_classes(context: RunContext, split: str) -> torch.Tensor:
    return BUILT_IN["mosi"].polarity(torch.from_numpy(context.rows[split].labels))


class Watched(CmcUnimodalTrainer):
    """Keeps a copy of what is there after every validation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[dict[str, Any]] = []

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        weights = copy.deepcopy(self.teachers.state_dict())
        labels = {split: table.soft.clone() for split, table in self._labels.items()}
        self.seen.append({"metrics": output.metrics, "weights": weights, "labels": labels})
        return output


def unimodal_trainer(
    context: RunContext, folder: Path, trainer_class: type[CmcUnimodalTrainer] = Watched, **arguments: Any
) -> Any:
    model = context.new_model(CmcUnimodalModels)
    model.text_encoder.requires_grad_(context.config.labels_source == "gt")
    args = context.arguments("unimodal", False)
    args.output_dir = str(folder)
    for name, value in arguments.items():
        setattr(args, name, value)
    return trainer_class(
        model,
        args,
        context.rows["train"],
        context.rows["validation"],
        context.collator("train"),
        context.collator("validation"),
        train_labels=first_labels(context, "train"),
        validation_labels=first_labels(context, "validation"),
    )


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A whole run whose second stage learns nothing, so that its start can be seen."""
    folder = tmp_path_factory.mktemp("run")
    return whole_run(corpus, folder, "stages.main.learning_rate=0.0", "stages.main.text_learning_rate=0.0")


LOSSES = {
    "text": [1.0, 0.8, 0.9, 0.85],
    "audio": [1.0, 0.9, 0.70004, 0.70001],  # the same to four digits
    "vision": [0.5, 0.6, 0.6, 0.6],
}


class Scripted(Watched):
    """Validates to the losses that are given, so that each modality is best in another epoch."""

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().prediction_step(*args, **kwargs)
        indices, losses, probabilities = self._validated[-1]
        values = torch.tensor([LOSSES[name][len(self.seen)] for name in MODALITIES])
        self._validated[-1] = (indices, values.expand_as(losses), probabilities)
        return result


@pytest.fixture(scope="module")
def scripted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Scripted:
    """Four epochs of the first stage; the labels of ten rows begin away from their classes."""
    context = prepared(corpus, tmp_path_factory.mktemp("scripted"), "stages.unimodal.num_train_epochs=4")
    trainer: Scripted = unimodal_trainer(context, context.folder / "stage", Scripted)
    trainer._labels["train"].soft[:10] = trainer._labels["train"].soft[:10].roll(1, dims=-1)
    trainer.fit()
    trainer.save_products(context.folder)
    return trainer


def test_run_gives_a_checkpoint_and_its_tables(trained: RunContext) -> None:
    run = json.loads((trained.folder / "run.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in run["stages"]] == ["unimodal", "main"]
    assert run["selection"]["stage"] == "main" and run["selection"]["rule"] == "best"
    row = trained.rows["validation"][0]
    assert AutoModel.from_pretrained(trained.folder)(**trained.processor.from_rows([row])).logits.shape == (1, 1)
    tables = products(trained)
    assert tables["train"].shape == (96, 3, 3) and tables["validation"].shape == (32, 3, 3)
    assert tables["train_history"].shape == (3, 96, 3) and tables["train_history"].dtype == torch.uint8
    assert torch.allclose(tables["train"].sum(-1), torch.ones(96, 3))
    assert (tables["train"] != F.one_hot(row_classes(trained, "train"), 3).unsqueeze(1)).any(), "labels have moved"
    assert not list(trained.stage_folder("unimodal").glob("text_states*")), "the cache is gone with its stage"


def test_second_stage_starts_from_the_first(trained: RunContext) -> None:
    """At a learning rate of zero what the second stage ends with is what it began with, tensor by tensor."""
    first, second = stage_weights(trained, "unimodal"), stage_weights(trained, "main")
    compared = 0
    for name, value in first.items():
        modality = name.split(".")[1]
        there = name.replace(f"branches.{modality}.classifier.", f"experts.{modality}.")
        if not any(part in name for part in ("running_", "num_batches")):
            assert torch.equal(second[there], value), name
            compared += 1
    assert compared > 30 and {"router.weight", "router.bias"} <= second.keys()


def test_validation_loss_of_the_second_stage_is_that_of_the_classes_alone(trained: RunContext) -> None:
    model = CmcForSentimentAnalysis.from_pretrained(trained.folder)
    rows = [trained.rows["validation"][index] for index in range(32)]
    logits = model(**trained.processor.from_rows(rows)).class_logits
    run = json.loads((trained.folder / "run.json").read_text(encoding="utf-8"))
    expected = F.cross_entropy(logits, row_classes(trained, "validation"))
    assert run["selection"]["value"] == pytest.approx(expected.item(), abs=1e-5)


def test_finished_stages_are_loaded_not_trained(
    trained: RunContext, corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run without its second stage trains that one to the same bits, from what the first left on disk."""
    shutil.copytree(trained.folder, tmp_path / "seed-1")
    shutil.rmtree(tmp_path / "seed-1" / "stages" / "main")
    (tmp_path / "seed-1" / "run.json").unlink()
    (tmp_path / "seed-1" / "model.safetensors").unlink()
    monkeypatch.setattr(CmcUnimodalTrainer, "fit", lambda self: pytest.fail("a finished stage was trained again"))
    whole_run(corpus, tmp_path, "stages.main.learning_rate=0.0", "stages.main.text_learning_rate=0.0")
    assert same(load_file(tmp_path / "seed-1" / "model.safetensors"), load_file(trained.folder / "model.safetensors"))


def test_teachers_follow_by_the_momentum_of_their_modality(corpus: Path, tmp_path: Path) -> None:
    """Epoch 4 keeps .99375 of text, 1 - .1 / 1024 of audio, .975 of vision."""
    trainer = unimodal_trainer(prepared(corpus, tmp_path), tmp_path / "stage")
    for parameters, value in ((trainer.teachers.parameters(), 0.0), (trainer.model.branches.parameters(), 1.0)):
        for parameter in parameters:
            parameter.data.fill_(value)
    trainer._epoch = 4
    trainer.move_teachers()
    for name, moved in (("text", 1 - 0.99375), ("audio", 0.1 / 1024), ("vision", 0.025)):
        values = torch.cat([p.flatten() for p in trainer.teachers.branches[name].parameters()])
        assert torch.allclose(values, torch.tensor(moved), rtol=1e-4), name
    assert trainer.teachers.text_encoder is trainer.model.text_encoder


def test_teachers_move_once_per_optimizer_step_in_the_epoch_of_the_batch(corpus: Path, tmp_path: Path) -> None:
    class Counting(CmcUnimodalTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.epochs: list[int] = []

        def move_teachers(self) -> None:
            self.epochs.append(self._epoch)
            super().move_teachers()

    context = prepared(
        corpus,
        tmp_path,
        "stages.unimodal.num_train_epochs=2",
        "stages.unimodal.per_device_train_batch_size=8",
        "stages.unimodal.gradient_accumulation_steps=4",
    )
    trainer = unimodal_trainer(context, tmp_path / "stage", Counting)
    trainer.fit()
    assert trainer.epochs == [1, 1, 1, 2, 2, 2]


def test_every_modality_keeps_its_own_best_teacher(scripted: Scripted) -> None:
    """`eval_loss` is the sum of the lowest losses so far: 2.5, 2.2 (text), 2.0 (audio), and no better after that."""
    metrics = [seen["metrics"] for seen in scripted.seen]
    assert [entry["eval_loss"] for entry in metrics] == [2.5, 2.2, 2.0, 2.0]
    assert [entry["eval_loss_text"] for entry in metrics] == LOSSES["text"]
    assert [entry["eval_loss_audio"] for entry in metrics] == [1.0, 0.9, 0.7, 0.7]
    assert scripted.state.best_global_step == 9 and scripted.state.best_metric == 2.0
    kept = scripted.model.state_dict()
    for name, epoch in (("text", 1), ("audio", 2), ("vision", 0)):
        compared = 0
        for key, value in scripted.seen[epoch]["weights"].items():
            if key.startswith(f"branches.{name}."):
                compared += 1
                assert torch.equal(kept[key], value), (key, epoch)
        assert compared > 5
    # What the stage gives are the labels at the latest improvement, not the last ones.
    tables = load_file(Path(scripted.args.output_dir).parent / "pseudo_labels.safetensors")
    for split in ("train", "validation"):
        assert torch.equal(tables[split], scripted.seen[2]["labels"][split])
        assert not torch.equal(tables[split], scripted.seen[3]["labels"][split])


def test_flips_are_logged_and_noted_by_epoch(scripted: Scripted) -> None:
    history = load_file(Path(scripted.args.output_dir).parent / "pseudo_labels.safetensors")["train_history"]
    classes = BUILT_IN["mosi"].polarity(torch.from_numpy(scripted.train_rows.labels)).unsqueeze(1)
    logged = [entry for entry in scripted.state.log_history if "loss" in entry]
    assert len(history) == len(logged) == 4
    before = F.one_hot(classes.expand(-1, 3), 3).float()
    before[:10] = before[:10].roll(1, dims=-1)
    for labels, seen, entry in zip(history, scripted.seen, logged, strict=True):
        table = seen["labels"]["train"]
        assert torch.equal(labels.long(), table.argmax(-1))
        flipped = (labels != classes).double().mean(0)
        assert flipped[1] == pytest.approx(10 / 96), "at a momentum of 0.99 labels stay as they began"
        assert [entry[f"flip_rate_{name}"] for name in MODALITIES] == pytest.approx(flipped.tolist())
        changes = (table - before).abs().sum(-1).mean(0)
        assert [entry[f"label_change_{name}"] for name in MODALITIES] == pytest.approx(changes.tolist(), rel=1e-4)
        before = table


def test_labels_of_a_step_are_those_before_it(corpus: Path, tmp_path: Path) -> None:
    """At momentum 0 a label takes what the step predicted; the step itself still learned from the label before."""
    context = prepared(corpus, tmp_path, "model.label_momentum={text: 0.0, audio: 0.0, vision: 0.0}")
    trainer = unimodal_trainer(context, tmp_path / "stage")
    batch = next(iter(trainer.get_train_dataloader()))
    rows = batch["sample_index"]
    table = trainer._labels["train"]
    before = table.soft.clone()
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    expected = sum(
        F.cross_entropy(outputs.unimodal_logits[:, index], table.classes[rows, index]) for index in range(3)
    )
    assert torch.allclose(loss - outputs.losses["supcon"], expected, atol=1e-5)
    moved = updated_labels(before[rows], outputs.unimodal_logits.detach().softmax(-1), 0.0)
    assert torch.allclose(table.soft[rows], moved, atol=1e-6)
    others = torch.ones(96, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(table.soft[others], before[others])


def test_validation_labels_move_once_per_epoch_by_what_the_trained_models_say(corpus: Path, tmp_path: Path) -> None:
    context = prepared(corpus, tmp_path, "stages.unimodal.num_train_epochs=1")
    arguments = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "load_best_model_at_end": False}
    trainer = unimodal_trainer(context, tmp_path / "stage", **arguments)
    states: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            states.append(copy.deepcopy(trainer.model.state_dict()))

    trainer.add_callback(Keep())
    trainer.fit()
    tables = [seen["labels"]["validation"] for seen in trainer.seen]
    assert len(tables) == len(states) == 3
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])
    trainer.model.load_state_dict(states[0])
    trainer.model.eval()
    rows = [context.rows["validation"][index] for index in range(32)]
    with torch.no_grad():
        logits = trainer.model(**context.processor.from_rows(rows)).unimodal_logits
    start = F.one_hot(row_classes(context, "validation").unsqueeze(1).expand(-1, 3), 3).float()
    expected = updated_labels(start, logits.softmax(-1), torch.tensor([[0.8], [0.99], [0.99]]))
    assert torch.allclose(tables[0], expected, atol=1e-4)


def test_validation_loss_is_the_teachers_before_their_labels_move(corpus: Path, tmp_path: Path) -> None:
    context = prepared(corpus, tmp_path, "stages.unimodal.num_train_epochs=1")
    trainer = unimodal_trainer(context, tmp_path / "stage")
    trainer.fit()
    rows = [context.rows["validation"][index] for index in range(32)]
    with torch.no_grad():
        logits = trainer.teachers(**context.processor.from_rows(rows)).unimodal_logits
    classes = row_classes(context, "validation")
    for index, name in some(enumerate(MODALITIES)):
        expected = F.cross_entropy(logits[:, index], classes).item()
        assert trainer.seen[0]["metrics"][f"eval_loss_{name}"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("quirks", [False, True])
def test_teachers_are_chosen_by_labels_that_stay_unless_the_public_code_is_asked_for(
    corpus: Path, tmp_path: Path, quirks: bool
) -> None:
    """The pseudo labels of the validation rows begin away from their classes."""
    context = prepared(corpus, tmp_path, "stages.unimodal.num_train_epochs=1", ablation="quirks" if quirks else None)
    trainer = unimodal_trainer(context, tmp_path / "stage")
    table = trainer._labels["validation"]
    table.soft = table.soft.roll(1, dims=-1)
    classes, moved = table.classes, table.hard()
    trainer.fit()
    trainer.teachers.eval()
    rows = [context.rows["validation"][index] for index in range(32)]
    with torch.no_grad():
        logits = trainer.teachers(**context.processor.from_rows(rows)).unimodal_logits
    for index, name in some(enumerate(MODALITIES)):
        losses = [F.cross_entropy(logits[:, index], targets[:, index]).item() for targets in (classes, moved)]
        assert abs(losses[0] - losses[1]) > 0.01
        measured = trainer.seen[0]["metrics"][f"eval_loss_{name}"]
        assert measured == pytest.approx(losses[1 if quirks else 0], abs=1e-3)


def test_teachers_have_the_batch_statistics_of_the_trained_models(corpus: Path, tmp_path: Path) -> None:
    for ablation, copied in ((None, True), ("quirks", False)):
        context = prepared(corpus, tmp_path / str(ablation), "stages.unimodal.num_train_epochs=1", ablation=ablation)
        trainer = unimodal_trainer(context, tmp_path / f"stage-{ablation}")
        trainer.train()
        teacher, fresh = (
            dict(trainer.teachers.branches.named_buffers()),
            dict(context.new_model(CmcUnimodalModels).branches.named_buffers()),
        )
        means = [name for name in teacher if name.endswith("running_mean")]
        assert len(means) == 2
        for name in means:
            assert torch.equal(teacher[name], fresh[name]) is not copied


def test_frozen_text_encoder_is_run_once_for_each_row(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encode = CmcUnimodalModels.encode_text

    def counted(self: CmcUnimodalModels, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append((len(input_ids), self.text_encoder.training))
        return encode(self, input_ids, mask)

    monkeypatch.setattr(CmcUnimodalModels, "encode_text", counted)
    context = prepared(corpus, tmp_path)
    trainer = unimodal_trainer(context, tmp_path / "stage")
    before = copy.deepcopy(trainer.model.text_encoder.state_dict())
    trainer.fit()
    assert sum(count for count, _ in seen) == 96 + 32 and not any(training for _, training in seen)
    assert same(before, trainer.model.text_encoder.state_dict())
    checkpoint = load_file(tmp_path / "stage" / "checkpoint-9" / "model.safetensors")
    assert not [name for name in checkpoint if name.startswith("text_encoder.")], "it need not be saved every epoch"
    trainer.model.save_pretrained(tmp_path / "whole")
    assert same(load_file(tmp_path / "whole" / "model.safetensors"), trainer.model.state_dict())


def test_text_states_are_what_the_encoder_gives(corpus: Path, tmp_path: Path) -> None:
    for fixed in (False, True):
        assignments = ("model.mask_padding=false", "pad_to_fixed=true") if fixed else ()
        context = prepared(corpus, tmp_path / str(fixed), *assignments)
        model, rows = context.new_model(CmcUnimodalModels).eval(), context.rows["train"]
        collator, path = context.collator("train"), tmp_path / f"{fixed}.safetensors"
        compute_text_states(model, rows, collator, path)
        batch = collator([rows[index] for index in (40, 3, 77)])
        with torch.no_grad():
            expected = model.encode_text(batch["input_ids"], batch["attention_mask"])
        found = TextStates(path)(batch["sample_index"], batch["input_ids"].shape[1])
        assert found.shape == expected.shape and found.dtype == torch.float32
        real = batch["attention_mask"].bool() if not fixed else torch.ones(found.shape[:2], dtype=torch.bool)
        assert torch.allclose(found[real], expected[real], atol=2e-3)
        assert not found[~real].any()


@pytest.mark.parametrize(("ablation", "training"), [(None, False), ("quirks", True), ("gt", True)])
def test_mode_of_the_text_encoder(corpus: Path, tmp_path: Path, ablation: str | None, training: bool) -> None:
    """Also where masks differ in every epoch, so that nothing is cached."""
    masks = "missing.train={name: frame, rate_range: [0.0, 1.0]}"
    context = prepared(corpus, tmp_path, masks, ablation=ablation)
    trainer = unimodal_trainer(context, tmp_path / "stage")
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch)
    assert trainer.model.text_encoder.training is training
    assert not list((tmp_path / "stage").glob("text_states*"))


def test_adam_decays_the_text_encoder_alone(corpus: Path, tmp_path: Path) -> None:
    context = prepared(corpus, tmp_path, "stages.main.text_learning_rate=5.0e-5")
    trainer = CmcTrainer(
        context.new_model(CmcForSentimentAnalysis),
        context.arguments("main", True),
        context.rows["train"],
        context.rows["validation"],
        context.collator("train"),
        context.collator("validation"),
        targets=first_labels(context, "train").hard(),
    )
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = {
        (group["lr"], group["weight_decay"]): {names[id(p)] for p in group["params"]}
        for group in optimizer.param_groups
    }
    assert groups.keys() == {(5e-5, 1e-3), (5e-5, 0.0), (1e-3, 0.0)}
    assert all(name.startswith("text_encoder.") for rate in (1e-3, 0.0) for name in groups[5e-5, rate])
    assert not [name for name in groups[5e-5, 1e-3] if "bias" in name or "LayerNorm" in name]
    assert sum(len(group) for group in groups.values()) == len(names)


def interrupted_at(step: int) -> TrainerCallback:
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    return Interrupt()


def ended(trainer: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Everything the stage gives."""
    trainer.fit()
    trainer.save_products(folder)
    return {**trainer.model.state_dict(), **load_file(folder / "pseudo_labels.safetensors")}


def test_interrupted_training_gives_the_same_bits(corpus: Path, tmp_path: Path) -> None:
    """Interrupted in the middle of an epoch, at the end of one, and before the first checkpoint."""
    arguments = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    context = prepared(corpus, tmp_path, ablation="m0_av_0.8")
    whole = ended(unimodal_trainer(context, tmp_path / "whole", **arguments), tmp_path / "whole")
    for step in (1, 5, 6):
        broken = unimodal_trainer(context, tmp_path / "broken", **arguments)
        broken.add_callback(interrupted_at(step))
        with pytest.raises(KeyboardInterrupt):
            broken.fit()
    resumed = ended(unimodal_trainer(context, tmp_path / "broken", **arguments), tmp_path / "broken")
    assert same(whole, resumed)
    assert len(resumed["train_history"]) == 3


def test_training_that_had_stopped_early_is_not_continued(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth validation is not better; weights and labels are those of the best ones again."""
    context = prepared(
        corpus, tmp_path, "stages.unimodal.num_train_epochs=9", "stages.unimodal.early_stopping_patience=1"
    )
    first = unimodal_trainer(context, tmp_path / "stage", Scripted)
    whole = ended(first, tmp_path / "stage")
    assert first.state.epoch == 4 and torch.equal(whole["train"], first.seen[2]["labels"]["train"])
    monkeypatch.setattr("hf_msa.training.trainer.MsaTrainer.train", lambda *_, **__: pytest.fail("it was trained on"))
    assert same(whole, ended(unimodal_trainer(context, tmp_path / "stage"), tmp_path / "stage"))


def test_without_selection_the_last_teachers_and_labels_are_kept(corpus: Path, tmp_path: Path) -> None:
    context = prepared(corpus, tmp_path, "stages.unimodal.num_train_epochs=4")
    trainer = unimodal_trainer(context, tmp_path / "stage", Scripted, load_best_model_at_end=False)
    found = ended(trainer, tmp_path)
    last = trainer.seen[-1]
    assert torch.equal(found["train"], last["labels"]["train"])
    assert all(torch.equal(found[k], v) for k, v in last["weights"].items() if k.startswith("branches."))


def test_true_unimodal_labels(corpus: Path, tmp_path: Path) -> None:
    """CMC-GT: targets are the data's own, the text encoder learns in both stages, what is kept are the models."""
    context = prepared(corpus, tmp_path, ablation="gt")
    rows = [context.rows["train"][index] for index in range(96)]
    expected = torch.tensor([[row[f"label_{name}"] for name in MODALITIES] for row in rows]).sign().long() + 1
    assert torch.equal(first_labels(context, "train").hard(), expected)
    assert (expected != row_classes(context, "train").unsqueeze(1)).any()
    trainer = unimodal_trainer(context, tmp_path / "stage", learning_rate=0.02)
    before = copy.deepcopy(trainer.model.text_encoder.state_dict())
    ended(trainer, tmp_path)
    assert trainer.teachers is trainer.model and not same(before, trainer.model.text_encoder.state_dict())
    losses = [seen["metrics"]["eval_loss_text"] for seen in trainer.seen]
    best = trainer.seen[losses.index(min(losses))]["weights"]
    kept = trainer.model.state_dict()
    for name, value in best.items():
        if name.startswith(("text_encoder.", "branches.text.")):
            assert torch.equal(kept[name], value), name
    tables = load_file(tmp_path / "pseudo_labels.safetensors")
    assert torch.equal(tables["train"].argmax(-1), expected), "true labels stay as they are"
    assert not any("flip_rate_text" in entry for entry in trainer.state.log_history)


def test_true_unimodal_labels_have_to_be_there(corpus: Path, tmp_path: Path) -> None:
    context = prepared(corpus, tmp_path, ablation="gt")
    rows = copy.copy(context.rows["train"])
    rows._values = {name: values for name, values in rows._values.items() if name != "label_audio"}
    context.rows["train"] = rows
    with pytest.raises(MsaError, match="has no 'label_audio'; take data with unimodal labels"):
        first_labels(context, "train")


def test_unimodal_models_are_chosen_by_their_loss(corpus: Path, tmp_path: Path) -> None:
    context = prepared(corpus, tmp_path)
    with pytest.raises(MsaError, match="chosen by eval_loss, but metric_for_best_model is 'eval_mae'"):
        unimodal_trainer(context, tmp_path / "stage", metric_for_best_model="eval_mae")


def test_without_guidance_labels_stay_multimodal(corpus: Path, tmp_path: Path) -> None:
    context = prepared(corpus, tmp_path, "stages.unimodal.num_train_epochs=1", ablation="wo_plgm")
    found = ended(unimodal_trainer(context, tmp_path / "stage"), tmp_path)
    expected = F.one_hot(row_classes(context, "train").unsqueeze(1).expand(-1, 3), 3).float()
    assert torch.equal(found["train"], expected)


def test_without_pretraining_there_is_one_stage(corpus: Path, tmp_path: Path) -> None:
    context = whole_run(corpus, tmp_path, ablation="wo_pretrain")
    assert [stage["name"] for stage in context.log] == ["main"] == list(METHODS["cmc"].stages.of(context.config))
    losses = {name for entry in context.log[0]["history"] for name in entry if name.startswith("loss_")}
    assert losses == {"loss_task", "loss_ce_text", "loss_ce_audio", "loss_ce_vision", "loss_supcon"}


def test_quirks_keep_the_last_epoch(corpus: Path, tmp_path: Path) -> None:
    context = whole_run(
        corpus,
        tmp_path,
        "stages.unimodal.num_train_epochs=1",
        "stages.main.num_train_epochs=3",
        "stages.main.learning_rate=0.05",
        "stages.main.early_stopping_patience=1",
        ablation="quirks",
    )
    assert [stage["selection"]["rule"] for stage in context.log] == ["best", "last"]
    assert context.log[1]["epochs"] == 3
    last = load_file(context.stage_folder("main") / "checkpoint-9" / "model.safetensors")
    assert same(last, stage_weights(context, "main"))
