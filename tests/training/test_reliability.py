"""Nothing silently wrong: divergence, damage, other data and a second writer are told from a run that is in order."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_msa import files
from hf_msa.errors import MsaError
from hf_msa.files import folder_lock
from hf_msa.methods import METHODS
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import RunContext, run_recipe
from hf_msa.training.trainer import MsaTrainer, checkpoint_fault, last_complete_checkpoint

SHORT = ("missing.selection_repeats=1",)
QUIET: dict[str, Any] = {"disable_tqdm": True, "use_cpu": True, "num_train_epochs": 2}
STEPS: dict[str, Any] = {
    **QUIET,
    **{"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 10},
}
RUNTIMES = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


def train(corpus: Path, output: Path, recipe: str = "text/sample", **flags: Any) -> RunContext:
    return run_recipe(load_recipe(recipe, assignments=SHORT), str(corpus), output, 1, flags or QUIET)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> pytest.MonkeyPatch:
    """End training as a kill would: when the checkpoint of a step is whole."""
    save = MsaTrainer._save_checkpoint

    def saved(self: MsaTrainer, *args: Any) -> None:
        save(self, *args)
        if (Path(str(self.args.output_dir)) / f"checkpoint-{step}" / "complete.json").is_file():
            raise KeyboardInterrupt

    monkeypatch.setattr(MsaTrainer, "_save_checkpoint", saved)
    return monkeypatch


def interrupted(corpus: Path, output: Path, step: int, recipe: str = "text/sample", **flags: Any) -> Path:
    """A run that was stopped at a step: its folder of checkpoints."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, step)
        train(corpus, output, recipe, **flags)
    return output / "seed-1" / "stages" / "main"


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "seed-1" / "model.safetensors")


def history(output: Path) -> list[dict[str, Any]]:
    run = json.loads((output / "seed-1" / "run.json").read_text(encoding="utf-8"))
    return [{k: v for k, v in entry.items() if k not in RUNTIMES} for s in run["stages"] for entry in s["history"]]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, with a checkpoint every two steps of six."""
    output = tmp_path_factory.mktemp("whole")
    train(tiny_corpus, output, **STEPS)
    return output


@pytest.fixture(scope="module")
def stopped(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after the checkpoints of steps 2 and 4."""
    output = tmp_path_factory.mktemp("stopped")
    interrupted(tiny_corpus, output, 4, **STEPS)
    return output


class TestDivergence:
    @pytest.mark.parametrize(
        "flags", [{"learning_rate": 1e20}, {"learning_rate": 1e20, "metric_for_best_model": "mae"}]
    )
    def test_a_loss_that_is_no_number_ends_the_run(
        self, flags: dict[str, Any], tiny_corpus: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(
            MsaError, match=r"'main' diverged: .* after step \d.*lower learning rate \(it is 1e\+20\)"
        ) as error:
            train(tiny_corpus, tmp_path, **QUIET, **flags)
        assert "\n" not in str(error.value)
        written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert not written & {"run.json", "stage.json", "model.safetensors", "README.md"}

    def test_so_does_one_in_validation(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = MsaTrainer.prediction_step

        def lost(self: MsaTrainer, *args: Any, **kwargs: Any) -> Any:
            loss, scores, labels = step(self, *args, **kwargs)
            assert scores is not None
            scores[3] = float("inf")
            return loss, scores, labels

        monkeypatch.setattr(MsaTrainer, "prediction_step", lost)
        with pytest.raises(MsaError, match="diverged: 1 of 32 validation rows have no finite score"):
            train(tiny_corpus, tmp_path, **QUIET)

    def test_so_do_weights_that_nothing_was_validated_with(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: MsaTrainer, **_: Any) -> None:
            next(self.model.parameters()).data.fill_(float("nan"))

        monkeypatch.setattr(MsaTrainer, "train", broken)
        flags = {"load_best_model_at_end": False, "eval_strategy": "no"}
        with pytest.raises(MsaError, match="diverged: the weights '.*' are not finite numbers"):
            train(tiny_corpus, tmp_path, **QUIET, **flags)

    def test_a_metric_that_is_not_defined_is_no_best_one(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A constant score has no correlation; it is no divergence, but nothing can be chosen by it."""
        step = MsaTrainer.prediction_step

        def constant(self: MsaTrainer, *args: Any, **kwargs: Any) -> Any:
            loss, scores, labels = step(self, *args, **kwargs)
            assert scores is not None
            return loss, torch.zeros_like(scores), labels

        monkeypatch.setattr(MsaTrainer, "prediction_step", constant)
        with pytest.raises(MsaError, match="No checkpoint of 'main' has the metric 'corr'"):
            train(tiny_corpus, tmp_path, **QUIET, metric_for_best_model="corr")
        with pytest.raises(MsaError, match="'reduce_lr_on_plateau' follows 'corr', which is not defined"):
            train(
                tiny_corpus,
                tmp_path / "plateau",
                **QUIET,
                metric_for_best_model="corr",
                lr_scheduler_type="reduce_lr_on_plateau",
            )

    def test_all_that_is_written_is_strict_json(self, whole: Path) -> None:
        def refuse(word: str) -> None:
            raise AssertionError(word)

        files = list(whole.rglob("*.json"))
        assert {"run.json", "trainer_state.json", "complete.json", "stage.json"} <= {file.name for file in files}
        for file in files:
            json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


class TestValidation:
    def test_every_row_counts_once(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """32 rows in batches of 12, 12 and 8: the mean over rows, by hand."""
        context = run_recipe(load_recipe("text/sample", assignments=SHORT), str(tiny_corpus), tmp_path, 1, QUIET)
        model = context.new_model(METHODS["text"].model_class)
        args = context.arguments("main", True)
        args.per_device_eval_batch_size = 12
        trainer = MsaTrainer(
            model,
            args,
            context.rows["train"],
            context.rows["validation"],
            context.collator("train"),
            context.collator("validation"),
        )
        batches = list(trainer.get_eval_dataloader())
        assert [len(batch["labels"]) for batch in batches] == [12, 12, 8]
        model.eval()
        with torch.no_grad():
            losses = [trainer.compute_loss(model, batch).item() for batch in batches]
        expected = (12 * losses[0] + 12 * losses[1] + 8 * losses[2]) / 32
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


class TestResumed:
    def test_the_history_is_that_of_an_undisturbed_run(self, whole: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        """Stopped at step 2 of the 3 of an epoch: its mean loss is over all three steps all the same."""
        interrupted(tiny_corpus, tmp_path, 2, **STEPS)
        train(tiny_corpus, tmp_path, **STEPS)
        assert history(tmp_path) == history(whole)
        assert any("loss_task" in entry for entry in history(whole))
        assert same(weights(tmp_path), weights(whole))

    def test_early_stopping_counts_on(self, tiny_corpus: Path, tmp_path: Path) -> None:
        flags = {**STEPS, "num_train_epochs": 20, "early_stopping_patience": 3, "learning_rate": 3e-2}
        train(tiny_corpus, tmp_path / "whole", **flags)
        steps = [entry["step"] for entry in history(tmp_path / "whole") if "eval_loss" in entry]
        assert len(steps) < 30, "it has to stop early"
        interrupted(tiny_corpus, tmp_path / "broken", steps[-2], **flags)
        train(tiny_corpus, tmp_path / "broken", **flags)
        assert history(tmp_path / "broken") == history(tmp_path / "whole")

    def test_a_run_that_was_moved_finds_its_best_checkpoint(
        self, whole: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        interrupted(tiny_corpus, tmp_path / "here", 6, **STEPS)
        (tmp_path / "here").rename(tmp_path / "there")
        train(tiny_corpus, tmp_path / "there", **STEPS)
        assert same(weights(tmp_path / "there"), weights(whole)) and history(tmp_path / "there") == history(whole)


Damage = Callable[[Path], None]


def lacking(name: str) -> Damage:
    return lambda checkpoint: (checkpoint / name).unlink()


def flipped(name: str) -> Damage:
    return lambda checkpoint: flip(checkpoint / name)


def cut(name: str) -> Damage:
    def damage(checkpoint: Path) -> None:
        os.truncate(checkpoint / name, (checkpoint / name).stat().st_size // 2)

    return damage


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json")
DAMAGES = {
    **{f"{how.__name__} {name}": how(name) for how in (lacking, flipped, cut) for name in FILES},
    "cut complete.json": cut("complete.json"),
    "lacking sums_since_log.json": lacking("sums_since_log.json"),
}


class TestDamagedCheckpoint:
    @pytest.mark.parametrize("name", DAMAGES)
    def test_is_known(self, name: str, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = tmp_path / "main"
        shutil.copytree(stopped / "seed-1" / "stages" / "main", folder)
        assert last_complete_checkpoint(folder) == folder / "checkpoint-4" and not caplog.records
        DAMAGES[name](folder / "checkpoint-4")
        assert checkpoint_fault(folder / "checkpoint-4") is not None
        assert last_complete_checkpoint(folder) == folder / "checkpoint-2"
        assert "checkpoint-4 is damaged and is not used" in caplog.text

    def test_gives_way_to_an_older_one_and_the_end_is_the_same(
        self, stopped: Path, whole: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "run"
        shutil.copytree(stopped, output)
        flip(output / "seed-1" / "stages" / "main" / "checkpoint-4" / "optimizer.pt")
        train(tiny_corpus, output, **STEPS)
        assert same(weights(output), weights(whole)) and history(output) == history(whole)

    def test_a_best_one_that_is_damaged_is_trained_again(
        self, tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        flags = {**STEPS, "learning_rate": 3e-2}
        train(tiny_corpus, tmp_path / "whole", **flags)
        folder = interrupted(tiny_corpus, tmp_path / "run", 6, **flags)
        best = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["best_global_step"]
        assert best in (2, 4), "the test is of use only where the last one is not the best"
        shutil.rmtree(folder / f"checkpoint-{best}")
        train(tiny_corpus, tmp_path / "run", **flags)
        assert f"of its best checkpoint, checkpoint-{best}, 'complete.json' is missing" in caplog.text
        assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
        assert history(tmp_path / "run") == history(tmp_path / "whole")

    def test_one_of_an_earlier_version_is_used_if_it_has_what_resuming_reads(
        self, stopped: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "main"
        shutil.copytree(stopped / "seed-1" / "stages" / "main", folder)
        (folder / "checkpoint-4" / "complete.json").write_text('{"global_step": 4}')
        (folder / "checkpoint-4" / "sums_since_log.json").unlink()
        assert last_complete_checkpoint(folder) == folder / "checkpoint-4"
        (folder / "checkpoint-4" / "optimizer.pt").unlink()
        assert last_complete_checkpoint(folder) == folder / "checkpoint-2"

    def test_an_older_one_stays_until_the_new_one_is_whole(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """Killed after the library's part of the second save, with a limit of one checkpoint."""

        def killed(self: MsaTrainer, folder: Path) -> None:
            if self.state.global_step == 4:
                raise KeyboardInterrupt

        flags = {**STEPS, "save_total_limit": 1, "load_best_model_at_end": False}
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(MsaTrainer, "save_state", killed)
            train(tiny_corpus, tmp_path, **flags)
        folder = tmp_path / "seed-1" / "stages" / "main"
        assert last_complete_checkpoint(folder) == folder / "checkpoint-2"

    def test_an_older_one_goes_where_a_run_was_killed_before_it_did(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """Killed between the last save and the deletion that follows it."""
        flags = {**STEPS, "save_total_limit": 2}

        def killed(output_dir: str, **_: Any) -> None:
            if Path(output_dir, "checkpoint-6").is_dir():
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("hf_msa.training.trainer.rotate_checkpoints", killed)
            train(tiny_corpus, tmp_path, **flags)
        folder = tmp_path / "seed-1" / "stages" / "main"
        assert len(list(folder.glob("checkpoint-*"))) == 3
        train(tiny_corpus, tmp_path, **flags)
        assert len(list(folder.glob("checkpoint-*"))) == 2


class TestDamagedRun:
    @pytest.fixture
    def output(self, whole: Path, tmp_path: Path) -> Path:
        shutil.copytree(whole, tmp_path / "run")
        return tmp_path / "run"

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "processor_config.json"])
    @pytest.mark.parametrize("how", [lacking, flipped, cut])
    def test_that_is_finished_does_not_count_as_trained(
        self, how: Callable[[str], Damage], name: str, output: Path, tiny_corpus: Path
    ) -> None:
        how(name)(output / "seed-1")
        with pytest.raises(MsaError, match=f"finished run .* is damaged: '{name}'.*delete .*run.json"):
            train(tiny_corpus, output, **STEPS)

    def test_that_is_finished_is_not_taken_by_half_a_mark(self, output: Path, tiny_corpus: Path) -> None:
        cut("run.json")(output / "seed-1")
        with pytest.raises(MsaError, match="run.json' is damaged"):
            train(tiny_corpus, output, **STEPS)

    def test_a_damaged_stage_is_made_anew(
        self, output: Path, whole: Path, tiny_corpus: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (output / "seed-1" / "run.json").unlink()
        flip(output / "seed-1" / "stages" / "main" / "model" / "model.safetensors")
        shutil.rmtree(output / "seed-1" / "stages" / "main" / "checkpoint-6")
        train(tiny_corpus, output, **STEPS)
        assert "The stage 'main' of" in caplog.text and "is made anew" in caplog.text
        assert (output / "seed-1" / "stages" / "main" / "model" / "model.safetensors.damaged").is_file()
        assert same(weights(output), weights(whole)) and history(output) == history(whole)

    def test_an_earlier_version_s_run_is_left_as_it_is(self, output: Path, tiny_corpus: Path) -> None:
        (output / "seed-1" / "hf_msa_files.json").unlink()
        train(tiny_corpus, output, **STEPS)
        (output / "seed-1" / "processor_config.json").unlink()
        with pytest.raises(MsaError, match="'processor_config.json' is missing"):
            train(tiny_corpus, output, **STEPS)


def rewritten(corpus: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy of a data set with other rows."""
    import datasets

    shutil.copytree(corpus, target)
    for file in target.rglob("*.parquet"):
        table = datasets.Dataset.from_parquet(str(file), cache_dir=str(target.parent / "cache"))
        if "text" not in table.column_names:
            continue
        table.map(change, features=table.features, load_from_cache_file=False).to_parquet(str(file))
    return target


class TestSameThings:
    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("the texts", lambda row: {**row, "text": row["text"] + " indeed"}),
            ("the audio features", lambda row: {**row, "audio": (5 * np.asarray(row["audio"])).tolist()}),
            ("the vision features", lambda row: {**row, "vision": (5 * np.asarray(row["vision"])).tolist()}),
            ("the labels", lambda row: {**row, "label": row["label"] / 2}),
        ],
    )
    def test_other_data_is_refused_by_the_part_that_changed(
        self,
        part: str,
        change: Callable[[dict[str, Any]], dict[str, Any]],
        stopped: Path,
        tiny_corpus: Path,
        tmp_path: Path,
    ) -> None:
        other = rewritten(tiny_corpus, tmp_path / "other", change)
        with pytest.raises(
            MsaError, match=f"{part} changed since it was begun; put back .* choose another --output"
        ) as error:
            train(other, stopped, **STEPS)
        assert "\n" not in str(error.value)

    def test_another_text_encoder_is_refused(self, stopped: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copytree(tiny_corpus, other)
        file = other / "text_model" / "model.safetensors"
        tensors = {name: value.clone() for name, value in load_file(file).items()}
        for value in tensors.values():
            value.add_(1)
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(MsaError, match="the text encoder changed since it was begun"):
            train(other, stopped, **STEPS)

    def test_another_tokenizer_is_refused(self, stopped: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copytree(tiny_corpus, other)
        file = other / "text_model" / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        words = list(content["model"]["vocab"])
        one, two = words[-1], words[-2]
        vocabulary = content["model"]["vocab"]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
        file.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(MsaError, match="the (tokenizer|text encoder) changed since it was begun"):
            train(other, stopped, **STEPS)

    def test_another_version_is_refused_until_the_run_is_finished(
        self, stopped: Path, whole: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(whole, tmp_path / "whole")
        monkeypatch.setattr("hf_msa.training.fingerprints.__version__", "99.0")
        with pytest.raises(MsaError, match=r"was begun with hf_msa .* and would go on with hf_msa 99\.0"):
            train(tiny_corpus, stopped, **STEPS)
        train(tiny_corpus, tmp_path / "whole", **STEPS)

    def test_an_earlier_version_s_run_goes_on_and_says_what_it_cannot_know(
        self, stopped: Path, whole: Path, tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(stopped, tmp_path / "old")
        file = tmp_path / "old" / "seed-1" / "settings.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        del settings["parts"]
        file.write_text(json.dumps(settings), encoding="utf-8")
        train(tiny_corpus, tmp_path / "old", **STEPS)
        assert "begun by an earlier version" in caplog.text and "taken to be the same" in caplog.text
        assert same(weights(tmp_path / "old"), weights(whole))

    def test_other_settings_are_named(self, stopped: Path, tiny_corpus: Path) -> None:
        with pytest.raises(MsaError, match=r"flags.num_train_epochs differs: 2, now 3"):
            train(tiny_corpus, stopped, **{**STEPS, "num_train_epochs": 3})


# Only what is needed of the package: importing all of it takes seconds.
LIGHT = f"""
import os, signal, sys, time, types
package = types.ModuleType("hf_msa")
package.__path__ = [{str(Path(files.__file__).parent)!r}]
sys.modules["hf_msa"] = package
from hf_msa.files import atomic_write, folder_lock
"""
HOLD = f"""{LIGHT}
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""
DIE_WRITING = f"""{LIGHT}
with atomic_write(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class TestTwoWriters:
    @pytest.fixture
    def holder(self, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
        """Another process that holds the folder of the run."""
        folder = tmp_path / "seed-1"
        command = [sys.executable, "-c", HOLD, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.wait()

    def test_the_second_is_refused(self, holder: "subprocess.Popen[str]", tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(MsaError, match=rf"in use by another command \(process {holder.pid} on .*, since 20"):
            train(tiny_corpus, tmp_path)
        assert not (tmp_path / "seed-1" / "settings.json").exists()

    def test_one_that_was_killed_is_taken_over_with_a_warning(
        self, holder: "subprocess.Popen[str]", tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with folder_lock(tmp_path / "seed-1"):
            assert f"process {holder.pid}" in caplog.text and "it is taken over" in caplog.text
        assert not list((tmp_path / "seed-1").iterdir())

    def test_a_folder_that_stays_empty_goes_again_and_nothing_else_is_left(self, tmp_path: Path) -> None:
        with folder_lock(tmp_path / "new" / "run"):
            assert (tmp_path / "new" / "run").is_dir()
        assert not list(tmp_path.iterdir())
        with folder_lock(tmp_path / "run"):
            (tmp_path / "run" / "result").touch()
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]

    def test_one_on_another_machine_has_a_way_out(self, tmp_path: Path) -> None:
        owner = tmp_path / ".hf_msa.lock.json"
        owner.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "2026-01-01T00:00:00"}))
        with (
            pytest.raises(MsaError, match="process 7 on elsewhere.*delete '.*hf_msa.lock.json'"),
            folder_lock(tmp_path),
        ):
            pass
        owner.unlink()
        with folder_lock(tmp_path):
            pass


def test_what_killed_commands_left_is_removed(tiny_corpus: Path, tmp_path: Path) -> None:
    folder = interrupted(tiny_corpus, tmp_path, 2, **STEPS)
    for place in (folder / "x.json", folder / "model" / "y.bin"):
        subprocess.run([sys.executable, "-c", DIE_WRITING, str(place)], check=False)
    hidden = [path.name for path in tmp_path.rglob(".*") if ".tmp-" in path.name]
    assert len(hidden) == 2
    train(tiny_corpus, tmp_path, **STEPS)
    assert not [path for path in tmp_path.rglob(".*") if ".tmp-" in path.name]
