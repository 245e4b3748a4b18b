"""What of a run's stages is shared with other runs, and what stays when it is finished."""

from pathlib import Path

import pytest
from transformers import AutoModel

from hf_msa.training.recipes import load_recipe
from hf_msa.training.run_folder import take_over_stages, tidy_run, tidy_stage
from hf_msa.training.stages import RunContext, run_recipe

STAGES = {"tcmr/sample": ("polarity", "regressor", "main"), "text/sample": ("main",)}
QUIET = {"disable_tqdm": True, "use_cpu": True}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def tidied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what conftest.py does for the other tests."""
    monkeypatch.setattr("hf_msa.training.stages.tidy_stage", tidy_stage)
    monkeypatch.setattr("hf_msa.training.stages.tidy_run", tidy_run)


def run(corpus: Path, folder: Path, recipe: str = "tcmr/sample", **flags: object) -> RunContext:
    short = ["missing.selection_repeats=1", *(f"stages.{stage}.num_train_epochs=1" for stage in STAGES[recipe])]
    return run_recipe(load_recipe(recipe, assignments=short), str(corpus), folder, 1, {**QUIET, **flags})


@pytest.mark.usefixtures("tidied")
def test_a_finished_run_takes_little_more_than_its_model(tiny_corpus: Path, tmp_path: Path) -> None:
    folder = run(tiny_corpus, tmp_path).folder
    stages = {"polarity/stage.json", "regressor/stage.json", "main/stage.json"}
    kept = {
        f"{stage}/model/{file}" for stage in ("polarity", "regressor") for file in ("model.safetensors", "config.json")
    }
    assert stages | kept <= files(folder / "stages")
    models = ("polarity/model/", "regressor/model/")
    assert {name for name in files(folder / "stages") - stages if not name.startswith(models)} == set()
    assert size(folder) <= 3.5 * (folder / "model.safetensors").stat().st_size
    model = AutoModel.from_pretrained(folder)
    assert model.config.model_type == "hf_msa_tcmr"


@pytest.mark.usefixtures("tidied")
def test_a_finished_run_is_not_trained_again(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(run(tiny_corpus, tmp_path).folder)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr("hf_msa.training.trainer.MsaTrainer.train", refuse)
    assert files(run(tiny_corpus, tmp_path).folder) == before


@pytest.mark.usefixtures("tidied")
def test_stages_of_a_tidied_run_are_trained_anew_where_the_run_is_no_longer_finished(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    folder = run(tiny_corpus, tmp_path, "text/sample").folder
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "run.json").unlink()
    (folder / "model.safetensors").unlink()
    run(tiny_corpus, tmp_path, "text/sample")
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.usefixtures("tidied")
def test_checkpoints_that_were_asked_for_stay_without_what_only_resuming_needs(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    folder = run(tiny_corpus, tmp_path, "text/sample", save_total_limit=100).folder / "stages" / "main"
    checkpoints = sorted(folder.glob("checkpoint-*"))
    assert len(checkpoints) == 1
    left = {path.name for path in checkpoints[0].iterdir()}
    assert {"model.safetensors", "config.json", "complete.json", "trainer_state.json"} <= left
    assert not {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} & left


def test_what_a_method_names_stays(tmp_path: Path) -> None:
    for name in ("one/stage.json", "one/model/weights", "one/model/deep/er", "two/stage.json", "two/table", "two/x/y"):
        (tmp_path / "stages" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stages" / name).touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tmp_path / "stages" / "link").symlink_to(outside)
    tidy_run(tmp_path, ("one/model/*", "two/table"), keep_checkpoints=False)
    left = {"one/stage.json", "one/model/weights", "one/model/deep/er", "two/stage.json", "two/table"}
    assert files(tmp_path / "stages") == left and not (tmp_path / "stages" / "two" / "x").exists()
    assert (outside / "file").exists(), "a link goes, not what it points to"


def test_only_finished_stages_are_taken_over_and_none_twice(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    for file in (
        "stages/one/stage.json",
        "stages/one/model/weights",
        "stages/one/checkpoint-3/weights",
        "stages/two/model/weights",
        "stages/three/stage.json",
        "stages/other/stage.json",
    ):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text("{}")
    (target / "stages" / "one" / "checkpoint-1").mkdir(parents=True)
    (target / "stages" / "three").mkdir()
    (target / "stages" / "three" / "stage.json").write_text('{"its": "own"}')
    take_over_stages(source, target, ("one", "two", "three", "four"))
    found = {path.relative_to(target / "stages").as_posix() for path in target.rglob("*") if path.is_file()}
    # What was begun gives way to what is finished; checkpoints to resume from stay behind.
    assert found == {"one/stage.json", "one/model/weights", "three/stage.json"}
    assert not (target / "stages" / "one" / "checkpoint-1").exists()
    assert (target / "stages" / "three" / "stage.json").read_text() == '{"its": "own"}'
