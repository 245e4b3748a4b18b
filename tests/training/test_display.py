"""The display of a training: one moving line in a terminal, plain lines elsewhere, nothing where it is turned off."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from hf_msa.training.arguments import MsaTrainingArguments
from hf_msa.training.display import TrainingDisplay, duration
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe

TITLE = "tcmr, stage 2 of 3 'regressor', seed 1112 (2 of 2)"


def shown(folder: Path, *, is_terminal: bool, stops_early: bool = False, **given: Any) -> str:
    """What the display writes of a training of four epochs of five steps, the second of which is the best."""
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=160, color_system=None)
    display, control = TrainingDisplay(TITLE, console), TrainerControl()
    args = MsaTrainingArguments(
        output_dir=str(folder), use_cpu=True, metric_for_best_model="eval_mae", early_stopping_patience=1, **given
    )
    state = TrainerState(max_steps=20, num_train_epochs=4)
    display.on_train_begin(args, state, control)
    for epoch, mae in enumerate((0.9, 0.7, 0.8, 0.75)[: 3 if stops_early else 4], start=1):
        state.global_step, state.epoch = 5 * epoch, float(epoch)
        display.on_step_end(args, state, control)
        logs = {"loss": 1 / epoch}
        display.on_log(args, state, control, logs=logs)
        metrics = {"eval_loss": 1.0, "eval_mae": mae}
        display.on_evaluate(args, state, control, metrics=metrics)
        state.log_history.append({**metrics, "epoch": float(epoch), "step": 5 * epoch})
        if display._bar is not None:
            display._bar.refresh()
    state.best_global_step, state.best_metric = 10, 0.7
    display.on_train_end(args, state, control)
    # Of another evaluation, after training.
    display.on_evaluate(args, state, control, metrics={"eval_mae": 0.1})
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_without_a_terminal_each_validation_is_a_plain_line(tmp_path: Path) -> None:
    lines = shown(tmp_path, is_terminal=False).splitlines()
    assert [re.sub(r"[0-9]+ s\b", "N s", line.removeprefix(f"{TITLE}: ")) for line in lines] == [
        "4 epochs, 20 steps",
        "epoch 1 of 4, loss 1.0000, validation mae 0.9000, at most N s left",
        "epoch 2 of 4, loss 0.5000, validation mae 0.7000, at most N s left",
        "epoch 3 of 4, loss 0.3333, validation mae 0.8000, at most N s left",
        "epoch 4 of 4, loss 0.2500, validation mae 0.7500, at most N s left",
        "keeps best epoch 2 of 4 (validation mae 0.7000); N s",
    ]


def test_an_early_end_is_explained(tmp_path: Path) -> None:
    last = shown(tmp_path, is_terminal=False, stops_early=True).splitlines()[-1]
    assert (
        "keeps best epoch 2 of 4 (validation mae 0.7000); stopped early at epoch 3: no better mae in 1 validations"
        in last
    )


def test_a_terminal_has_one_line_that_moves(tmp_path: Path) -> None:
    text = shown(tmp_path, is_terminal=True)
    assert "epoch 3 of 4, loss 0.3333, validation mae 0.8000" in text and TITLE in text
    # All but what is left at the end is written over.
    assert text.count("\n") <= 3 and text.rstrip().splitlines()[-1].count("keeps best epoch 2 of 4") == 1
    assert "?25h" in text, "the cursor is shown again"


def test_without_a_choice_the_last_epoch_is_kept(tmp_path: Path) -> None:
    last = shown(tmp_path, is_terminal=False, load_best_model_at_end=False).splitlines()[-1]
    assert "keeps last epoch 4 of 4 (validation mae 0.7500)" in last


def test_durations_are_short() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 150, 12_240)] == ["0 s", "59 s", "2 min", "3.4 h"]


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_run_says_which_stage_of_which_seed_it_trains(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_quiet: bool
) -> None:
    recipe = load_recipe("text/sample", assignments=["missing.selection_repeats=1"])
    flags = {"use_cpu": True, "num_train_epochs": 1, "disable_tqdm": is_quiet}
    run_recipe(recipe, str(tiny_corpus), tmp_path, 4, flags, seeds=(3, 4))
    said = capsys.readouterr()
    assert "eval_" not in said.out + said.err and "epoch':" not in said.out + said.err and "| 1/3 [" not in said.err
    lines = [line for line in said.err.splitlines() if line.startswith("text, stage ")]
    if is_quiet:
        assert not lines
    else:
        assert lines[0] == "text, stage 1 of 1 'main', seed 4 (2 of 2): 1 epochs, 3 steps"
        assert "epoch 1 of 1, loss" in lines[1] and "keeps best epoch 1 of 1 (validation" in lines[2]
