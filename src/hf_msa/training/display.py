"""Display of a training: one line that moves in a terminal, a plain line per validation elsewhere."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState


def say(text: str, console: Console | None = None) -> None:
    """Print a plain line where the display is, beside what commands print as their result."""
    (console or Console(stderr=True)).print(text, soft_wrap=True, highlight=False, markup=False)


def chosen_checkpoint(state: TrainerState, args: TrainingArguments) -> dict[str, Any]:
    """Which checkpoint a stage gives, by which rule, and its value of the selection metric.

    The rule is ``"best"`` on the validation split or, without `load_best_model_at_end`, ``"last"``: nothing is chosen.
    """
    best = args.load_best_model_at_end
    step = state.best_global_step if best else state.global_step
    metric = metric_name(args)
    evaluated = next((e for e in reversed(state.log_history) if e.get("step") == step and "eval_loss" in e), {})
    return {
        "rule": "best" if best else "last",
        "value": state.best_metric if best else evaluated.get(f"eval_{metric}"),
        "step": step,
        "epoch": evaluated.get("epoch", state.epoch),
    }


def metric_name(args: TrainingArguments) -> str:
    """The metric by which the best checkpoint is chosen, e.g. ``"mae"``."""
    return str(args.metric_for_best_model or "loss").removeprefix("eval_")


class TrainingDisplay(TrainerCallback):
    """Shows which stage of which run trains, its epoch, loss and validation value, and how long it will take.

    At the end it says which epoch is kept and, if training stopped early, why.

    Args:
        title: What trains, e.g. ``"tcmr, stage 1 of 3 'polarity', seed 1111 (1 of 2)"``; default: the output folder's name.
        console: Where to; default: standard error.
    """

    def __init__(self, title: str | None = None, console: Console | None = None) -> None:
        self.title = title
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._is_shown = False
        self._loss: float | None = None
        self._begun, self._first_step = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the line, or say what begins."""
        self.stop()
        self._is_shown = state.is_world_process_zero
        if not self._is_shown:
            return
        self.title = self.title or Path(str(args.output_dir)).name
        self._begun, self._first_step, self._loss = time.monotonic(), state.global_step, None
        if not self._console.is_terminal:
            resumed = f", goes on from step {state.global_step}" if state.global_step else ""
            say(f"{self.title}: {_epochs(state)} epochs, {state.max_steps} steps{resumed}", self._console)
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[now]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(self.title, total=state.max_steps, completed=state.global_step, now="")
        self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the line."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take up the loss; without validation this is all that there is to say."""
        self._loss = (logs or {}).get("loss", self._loss)
        if self._is_shown and "loss" in (logs or {}):
            self._tell(args, state, {}, is_last_word=args.eval_strategy == "no")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say how the validation went."""
        if self._is_shown:
            self._tell(args, state, metrics or {}, is_last_word=True)

    def _tell(self, args: TrainingArguments, state: TrainerState, metrics: dict[str, Any], is_last_word: bool) -> None:
        parts = [f"epoch {state.epoch or 0:.4g} of {_epochs(state)}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        name = metric_name(args)
        if f"eval_{name}" in metrics:
            parts.append(f"validation {name} {metrics[f'eval_{name}']:.4f}")
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, now=", ".join(parts))
        elif is_last_word:
            steps = state.global_step - self._first_step
            left = (time.monotonic() - self._begun) / max(steps, 1) * (state.max_steps - state.global_step)
            say(f"{self.title}: {', '.join(parts)}, at most {duration(left)} left", self._console)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what is kept, and why training ended before its time."""
        if not self._is_shown:
            return
        self.stop()
        chosen, name = chosen_checkpoint(state, args), metric_name(args)
        value = "" if chosen["value"] is None else f" (validation {name} {chosen['value']:.4f})"
        text = f"{self.title}: keeps {chosen['rule']} epoch {chosen['epoch'] or 0:.4g} of {_epochs(state)}{value}"
        if state.global_step < state.max_steps:
            patience = getattr(args, "early_stopping_patience", None)
            text += f"; stopped early at epoch {state.epoch or 0:.4g}"
            text += "" if patience is None else f": no better {name} in {patience} validations"
        say(f"{text}; {duration(time.monotonic() - self._begun)}", self._console)

    def stop(self) -> None:
        """Take the line away, also where training failed."""
        self._is_shown = False
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """A duration in words, e.g. ``"45 s"``, ``"12 min"`` or ``"3.4 h"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _epochs(state: TrainerState) -> str:
    return f"{state.num_train_epochs:.4g}"
