"""`transformers.Trainer` for multimodal sentiment analysis with missing modalities."""

import json
import logging
import math
import re
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    SaveStrategy,
    SchedulerType,
    rotate_checkpoints,
)

from hf_msa.data.collator import MsaCollator
from hf_msa.data.rows import DrawnRows, MsaRows
from hf_msa.errors import MsaError, reason, unknown_name
from hf_msa.evaluation.metrics import regression_metrics
from hf_msa.files import write_json
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_files import FILES_LIST, file_facts, file_fault, read_list
from hf_msa.models.msa_schema import MODALITIES

from .arguments import MsaTrainingArguments
from .display import TrainingDisplay
from .sampler import MsaBatchSampler

_COMPLETE = "complete.json"
# What was lost and learned since the last log.
_SUMS = "sums_since_log.json"
_MEASURED_SCHEDULES = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def row_costs(rows: MsaRows) -> np.ndarray:
    """Number of positions of each row over all modalities `(rows,)`: what its batch has to be padded to."""
    costs: np.ndarray = np.sum([rows.lengths[name] for name in MODALITIES if name in rows.lengths], axis=0)
    return costs


class CompleteCheckpoints(Trainer):
    """Resumes from whole checkpoints alone, to the same end, and stops where training diverges.

    A checkpoint is whole if all that was written to it is there, byte for byte (`complete.json`), and so is the best one
    before it, where that is what a run is for. The newest whole one is used.
    """

    args: TrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except MsaError:
            raise
        except (ImportError, RuntimeError, ValueError) as error:
            raise MsaError(f"The training arguments cannot be used: {reason(error)}.") from error
        # Since the last log: of each named loss of this process the sum, and of how many.
        self._named_losses: dict[str, tuple[Tensor | float, int]] = {}
        self._resumed_sums: dict[str, Any] = {}
        self._is_epoch_over = self._is_save_due = False
        self.add_callback(_WholeEpochs(self))
        self.remove_callback(PrinterCallback)
        self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        self.display = TrainingDisplay()
        if not self.args.disable_tqdm:
            self.add_callback(self.display)

    # --- Divergence ---

    def _diverged(self, what: str) -> MsaError:
        stage = Path(str(self.args.output_dir)).name
        return MsaError(
            f"The training of {stage!r} diverged: {what} after step {self.state.global_step}; choose a lower learning rate "
            f"(it is {self.args.learning_rate:g}) or max_grad_norm, and another --output."
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take one step; see `transformers.Trainer.training_step`.

        Raises:
            MsaError: If the loss is not a finite number.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss was {loss.item()}")
        return loss

    def _check_weights(self) -> None:
        """Refuse a model with weights that are not finite numbers: one that nothing was validated with, for example."""
        for name, parameter in cast(nn.Module, self.model).named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise self._diverged(f"the weights {name!r} are not finite numbers")

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Create the learning rate's schedule.

        Raises:
            MsaError: If it cannot be made of the arguments.
        """
        try:
            return super().create_scheduler(*args, **kwargs)
        except (KeyError, TypeError, ValueError) as error:
            raise MsaError(
                f"The schedule {SchedulerType(self.args.lr_scheduler_type).value!r} cannot be made: {reason(error)}."
            ) from error

    # --- Checkpoints ---

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        is_last_step = self.control.should_training_stop or float(self.state.epoch or 0).is_integer()
        if is_last_step and not self._is_epoch_over:
            # What is logged and measured at the end of the epoch belongs to it: a resumed run begins behind that.
            self._is_save_due = True
            return
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        sums = {
            "steps": self.state.global_step - self._globalstep_last_logged,
            "loss": self.accelerator.gather(self._tr_loss.reshape(1)).mean().item(),
            "named": self._summed_losses(),
        }
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        if self.args.should_save:
            # One of these steps that was damaged does not count as whole while it is written anew.
            (folder / _COMPLETE).unlink(missing_ok=True)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.save_state(folder)
            write_json(folder / _SUMS, sums)
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            listed = read_list(folder / FILES_LIST)
            files = file_facts(folder, set(names) - listed.keys()) | listed
            write_json(folder / _COMPLETE, {"global_step": self.state.global_step, "files": files})
            # Not before the new one is whole.
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def save_state(self, folder: Path) -> None:
        """Write what training carries along beside model and optimizer, e.g. tables or teachers; with every checkpoint.

        Args:
            folder: The checkpoint's folder, which counts as complete only after this.
        """

    def load_state(self, folder: Path) -> None:
        """Restore what `save_state` wrote; called before training goes on.

        Args:
            folder: The checkpoint's folder.
        """

    def _best_folder(self) -> Path | None:
        """Folder of the checkpoint that is best so far, wherever the run lay when it was written."""
        step = self.state.best_global_step
        return Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}" if step else None

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        best = self._best_folder()
        self.state.best_model_checkpoint = str(best) if best is not None and best.is_dir() else None
        return found

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this is the best checkpoint: never where none is written, nor where the metric is not defined."""
        name = str(self.args.metric_for_best_model)
        is_saved = self.control.should_save or self.args.save_strategy == SaveStrategy.BEST
        if not is_saved or f"eval_{name.removeprefix('eval_')}" not in metrics:
            return False
        return bool(super()._determine_best_metric(metrics, trial))

    def _load_best_model(self) -> None:
        best = self._best_folder()
        fault = "it is missing" if best is None else checkpoint_fault(best)
        if fault is not None:
            raise MsaError(
                f"The best checkpoint {str(best)!r} is damaged: {fault}; give the same command again to train what is lost."
            )
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    def fit(self) -> TrainerState:
        """Train to the end, from the last complete checkpoint in the output folder where there is one.

        Returns:
            The trainer's state; the model then holds the weights of the best checkpoint, or of the last one without
            `load_best_model_at_end`.

        Raises:
            MsaError: If training diverges, or no checkpoint was measured of which the best is wanted.
        """
        wants_best = self.args.load_best_model_at_end
        # Asked by one process: all have to answer alike.
        found = [str(last_complete_checkpoint(self.args.output_dir, wants_best) or "")]
        checkpoint = broadcast_object_list(found)[0] or None
        if checkpoint is not None:
            self.load_state(Path(checkpoint))
            sums = Path(checkpoint) / _SUMS
            self._resumed_sums = json.loads(sums.read_text(encoding="utf-8")) if sums.is_file() else {}
        if checkpoint is not None and self._has_stopped_early(Path(checkpoint)):
            self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            self._load_best_model()
        else:
            try:
                self.train(resume_from_checkpoint=checkpoint)
            finally:
                self.display.stop()
        if wants_best and self.state.best_model_checkpoint is None:
            raise MsaError(
                f"No checkpoint of {Path(str(self.args.output_dir)).name!r} has the metric "
                f"{self.args.metric_for_best_model!r} by which the best is chosen: none was validated, or it is not defined "
                "on these predictions; choose another metric_for_best_model, validate more often, or pass "
                "--load_best_model_at_end false."
            )
        self._check_weights()
        if self.args.should_save:
            # A run that was killed between writing its last checkpoint and deleting an older one writes no other.
            rotate_checkpoints(str(self.args.output_dir), self.args.save_total_limit, self.state.best_model_checkpoint)
        return self.state

    def _has_stopped_early(self, checkpoint: Path) -> bool:
        """Whether the run had already ended by early stopping when this checkpoint was written."""
        saved = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        counter = saved["stateful_callbacks"].get("EarlyStoppingCallback", {}).get("attributes", {})
        patience = getattr(self.args, "early_stopping_patience", None) if self.args.load_best_model_at_end else None
        return patience is not None and counter.get("early_stopping_patience_counter", 0) >= patience

    # --- The log ---

    def sampled_loader(self, sampler: MsaBatchSampler, collator: Any) -> DataLoader[dict[str, Any]]:
        """Training batches of this process, as a sampler has already cut them: `accelerator.prepare` would cut them again.

        Args:
            sampler: Of this process.
            collator: Makes a batch of its items.
        """
        loader: DataLoader[dict[str, Any]] = DataLoaderShard(
            self.train_dataset,
            device=self.accelerator.device,
            batch_sampler=sampler,
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.accelerator.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        return loader

    def _summed_losses(self) -> dict[str, tuple[float, int]]:
        """Sums and counts of the named losses over all processes."""
        found: dict[str, tuple[float, int]] = {}
        for losses in gather_object([{name: (float(sum_), n) for name, (sum_, n) in self._named_losses.items()}]):
            for name, (total, count) in losses.items():
                before = found.get(name, (0.0, 0))
                found[name] = (before[0] + total, before[1] + count)
        return found

    def add_named_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Count losses of a training step, each a scalar, for the means in the log."""
        for name, value in losses.items():
            total, count = self._named_losses.get(name, (0.0, 0))
            self._named_losses[name] = (total + value.detach(), count + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of every named loss since the last log; what is not a finite number is left out."""
        if "loss" in logs:
            means = {name: float(np.float32(total) / count) for name, (total, count) in self._summed_losses().items()}
            logs |= {f"loss_{name}": mean for name, mean in means.items()}
            self._named_losses.clear()
        finite = {name: value for name, value in logs.items() if not isinstance(value, float) or math.isfinite(value)}
        super().log(finite, start_time)


class _WholeEpochs(TrainerCallback):
    """Makes the log of a resumed training that of an undisturbed one, in the middle of an epoch and at its end."""

    def __init__(self, trainer: CompleteCheckpoints) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put back the sums of the steps before, which the library begins anew."""
        trainer, sums = self._trainer, self._trainer._resumed_sums
        if not sums:
            return
        trainer._tr_loss += sums["loss"]
        trainer._globalstep_last_logged -= sums["steps"]
        if trainer.is_world_process_zero():
            trainer._named_losses |= {name: (total, count) for name, (total, count) in sums["named"].items()}
        trainer._resumed_sums = {}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note that an epoch is not over."""
        self._trainer._is_epoch_over = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the checkpoint that was due with the last step."""
        self._trainer._is_epoch_over = True
        control.should_save = control.should_save or self._trainer._is_save_due
        self._trainer._is_save_due = False


class MsaTrainer(CompleteCheckpoints):
    """Trains any hf_msa model under a missing-data protocol.

    A subclass for a method with a training procedure of its own overrides `model_inputs` (what the model gets beside the
    batch), `passes` and `create_optimizer`; what it carries from step to step goes through `save_state` and `load_state`.

    Args:
        model: What to train.
        args: Arguments of this stage.
        train_rows: Training rows, tokenised.
        eval_rows: Validation rows, tokenised.
        train_collator: Makes training batches, under the training protocol.
        eval_collator: Makes validation batches, under the selection protocol.
        eval_draws: Fixed draws of the validation masks that are averaged.
        **kwargs: Passed on to `transformers.Trainer`.

    Example:
        ```python
        from hf_msa import FrameMissing, MsaCollator, MsaProcessor, MsaRows, MsaTrainer, MsaTrainingArguments, load_msa
        from transformers import AutoModel

        model = AutoModel.from_pretrained("runs/text/seed-1")
        processor = MsaProcessor.from_pretrained("runs/text/seed-1")
        data = load_msa("data/sample")
        rows = {split: MsaRows(data[split], split, processor.tokenizer, 50) for split in ("train", "validation")}
        trainer = MsaTrainer(
            model,
            MsaTrainingArguments("output", num_train_epochs=1, use_cpu=True),
            rows["train"],
            rows["validation"],
            MsaCollator(processor, FrameMissing(rate=0.5), split="train"),
            MsaCollator(processor, FrameMissing(rate=0.5), split="validation"),
        )
        trainer.fit()
        ```
    """

    model: MsaPreTrainedModel
    args: MsaTrainingArguments
    train_dataset: Dataset[dict[str, Any]]
    eval_dataset: Dataset[dict[str, Any]]
    # Passes over the data per epoch.
    passes = 1

    def __init__(
        self,
        model: MsaPreTrainedModel,
        args: MsaTrainingArguments,
        train_rows: MsaRows,
        eval_rows: MsaRows,
        train_collator: MsaCollator,
        eval_collator: MsaCollator,
        eval_draws: int = 1,
        **kwargs: Any,
    ) -> None:
        self.train_rows = train_rows
        self.eval_rows = eval_rows
        self.train_collator = train_collator
        self.eval_collator = eval_collator
        drawn = DrawnRows(eval_rows, eval_draws)
        order = np.argsort(np.tile(row_costs(eval_rows), eval_draws), kind="stable")
        # DrawnRows knows as many draws as it is asked for; training asks for one per pass.
        # An epoch has at least one step, and max_steps may take more epochs than num_train_epochs says.
        epochs = max(1, math.ceil(args.num_train_epochs), args.max_steps)
        train_dataset = DrawnRows(train_rows, epochs * self.passes)
        callbacks = list(kwargs.pop("callbacks", []) or [])
        # Without a best checkpoint to go back to there is nothing to stop early for.
        if args.early_stopping_patience is not None and args.load_best_model_at_end:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        super().__init__(
            model=model,
            args=args,
            data_collator=train_collator,
            train_dataset=train_dataset,
            eval_dataset=Subset(drawn, order.tolist()),
            callbacks=callbacks,
            **kwargs,
        )

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of this process; see `MsaBatchSampler`."""
        grouped = self.args.train_sampling_strategy == "group_by_length"
        sampler = MsaBatchSampler(
            lengths=row_costs(self.train_rows) if grouped else None,
            rows=len(self.train_rows),
            batch_size=self._train_batch_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            passes=self.passes,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=self.args.gradient_accumulation_steps,
        )
        return self.sampled_loader(sampler, self.train_collator)

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Rows that one epoch sees, for the log."""
        return len(self.train_rows) * self.passes

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[dict[str, Any]]:
        """Validation batches of this process, in order of length: every one of them is whole, and in no other process."""
        given = self.eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else eval_dataset
        places, size = range(len(cast(Sized, given))), self.args.eval_batch_size
        batches = [list(places[begin : begin + size]) for begin in places[::size]]
        return DataLoader(
            given,
            batch_sampler=batches[self.accelerator.process_index :: self.accelerator.num_processes],
            collate_fn=self.eval_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def model_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """What the model gets beside the batch; overridden by methods with teachers or phases.

        Args:
            inputs: The collator's batch, on the device.
            training: Whether this is a training step (else validation).
        """
        return {}

    def forward_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """What the model reads of the batch, with `model_inputs` beside it."""
        return {**self.model.inputs_from(inputs, predicting=False), **self.model_inputs(inputs, training)}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Run the model on what it takes of the batch and keep its named losses for the log."""
        outputs = model(**self.forward_inputs(inputs, training=model.training))
        if model.training:
            self.add_named_losses(outputs.losses or {})
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, scores and labels of one validation batch; no scores where the model gives none."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        scores = None if outputs.logits is None else outputs.logits.detach().float()
        return loss.detach().float(), scores, inputs["labels"]

    def evaluation_loop(
        self,
        dataloader: DataLoader[dict[str, Any]],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Validate: the mean loss over rows, and metrics of the scores; the same for any number of processes.

        The library's own loop fills the processes' last batches with rows that it has counted already.

        Raises:
            MsaError: If a loss or a score is not a finite number.
        """
        self.model.eval()
        # Of optimizers that average weights.
        if callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()  # type: ignore[union-attr]
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        batches: list[tuple[int, float, list[float] | None, list[float]]] = []
        for number, inputs in enumerate(dataloader):
            loss, scores, labels = cast("tuple[Tensor, ...]", self.prediction_step(self.model, inputs, False))
            # Classes of a stage of its own have no metrics.
            has_scores = scores is not None and scores.numel() == labels.numel()
            found = scores.reshape(-1).tolist() if has_scores else None
            batches.append((number * processes + rank, loss.item(), found, labels.reshape(-1).tolist()))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        batches = sorted(gather_object(batches), key=lambda batch: batch[0])
        targets = np.concatenate([np.array(batch[3], np.float32) for batch in batches])
        losses = np.repeat(np.array([batch[1] for batch in batches], np.float32), [len(batch[3]) for batch in batches])
        lost = len(losses) - int(np.isfinite(losses).sum())
        if lost:
            raise self._diverged(f"{lost} of {len(losses)} validation rows have no finite loss")
        metrics = {"loss": losses.mean().item()}
        given = [batch[2] for batch in batches if batch[2] is not None]
        predictions = (
            np.concatenate([np.array(part, np.float32) for part in given]) if given else np.zeros(0, np.float32)
        )
        lost = len(predictions) - int(np.isfinite(predictions).sum())
        if lost:
            raise self._diverged(f"{lost} of {len(predictions)} validation rows have no finite score")
        if len(predictions):
            measured = regression_metrics(predictions, targets, self.model.config.label_family)
            metrics |= {name: value for name, value in measured.items() if math.isfinite(value)}
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=predictions, label_ids=targets, metrics=named, num_samples=len(targets))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate; see `transformers.Trainer.evaluate`.

        Raises:
            MsaError: If the schedule follows a metric that is not defined on these predictions.
        """
        # Each process counts batch statistics of its own: what is validated has to be what the main process saves.
        broadcast(list(self.model.buffers()))
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        wanted = str(self.args.metric_for_best_model).removeprefix("eval_")
        schedule = SchedulerType(self.args.lr_scheduler_type)
        if f"eval_{wanted}" not in metrics and schedule in _MEASURED_SCHEDULES:
            raise MsaError(
                f"The schedule {schedule.value!r} follows {wanted!r}, which is not defined on these predictions, e.g. as "
                "they are all alike; choose another metric_for_best_model or lr_scheduler_type."
            )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what the model has learned that is worth following."""
        super().log({**logs, **(self.model.logged_values() if "loss" in logs else {})}, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One optimizer, with learning rates and weight decays of their own for the components that are given some."""
        if self.optimizer is None:
            self.optimizer = self.build_optimizer(list(self.model.named_parameters()))
        return self.optimizer

    def build_optimizer(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer of `args.optim` over the trainable ones of `parameters`.

        Args:
            parameters: Names and parameters, e.g. of the whole model or of one part of it.

        Raises:
            MsaError: If a learning rate or weight decay is given for a component that the model does not have, though the
                data has its modality.
        """
        decayed = set(self.get_decay_parameter_names(self.model))
        rates = self._component_numbers(self.args.component_learning_rates)
        decays = self._component_numbers(self.args.component_weight_decays)
        if self.args.text_learning_rate is not None:
            rates["text_encoder"] = self.args.text_learning_rate
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in parameters:
            if parameter.requires_grad:
                component = self.model.component_of(name)
                rate = rates.get(component, self.args.learning_rate)
                decay = decays.get(component, self.args.weight_decay) if name in decayed else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        try:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        except (ImportError, ValueError) as error:
            raise MsaError(f"The optimizer {self.args.optim!s} cannot be made: {reason(error)}.") from error
        options.pop("lr", None)
        optimizer: torch.optim.Optimizer = optimizer_class(
            [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
            **options,
        )
        return optimizer

    def _component_numbers(self, given: dict[str, Any] | str | None) -> dict[str, float]:
        """Numbers by component, of which the model has each unless the data lacks its modality."""
        numbers = dict(cast("dict[str, float]", given or {}))
        components = {self.model.component_of(name) for name, _ in self.model.named_parameters()}
        components |= set(self.model.COMPONENTS)
        lacking = set(MODALITIES) - set(self.model.config.modalities)
        for component in numbers:
            if component not in components and component.partition("_")[0] not in lacking:
                raise unknown_name(f"component of {type(self.model).__name__}", component, components)
        return numbers

    def save_products(self, folder: Path) -> None:
        """Write what the stage gives beside its model, e.g. tables for later stages; called when it has ended.

        Args:
            folder: The stage's folder.
        """


class AdamTrainer(MsaTrainer):
    """Plain Adam, so that weight decay is coupled, as in the public code of several methods.

    Raises:
        MsaError: If another optimizer is asked for.
    """

    def __init__(self, model: MsaPreTrainedModel, args: MsaTrainingArguments, *arguments: Any, **kwargs: Any) -> None:
        if args.optim != MsaTrainingArguments.optim or args.optim_args:
            raise MsaError(
                f"{type(model).__name__} is trained by Adam with coupled weight decay, as its authors did; leave optim and "
                "optim_args out."
            )
        super().__init__(model, args, *arguments, **kwargs)

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: PreTrainedModel | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Adam with the betas and epsilon of `args`."""
        options = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        return torch.optim.Adam, options


def checkpoint_fault(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint that was marked as complete; None where all is as it was written.

    One of an earlier version does not say what belongs to it: it has to hold what resuming reads.
    """
    try:
        mark = json.loads((checkpoint / _COMPLETE).read_text(encoding="utf-8"))
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if "files" not in mark:
            names = ("optimizer.pt", "scheduler.pt")
            return next((f"{name!r} is missing" for name in names if not (checkpoint / name).is_file()), None)
        return file_fault(checkpoint, mark["files"], digests=True)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name!r} is missing"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"its marks cannot be read ({reason(error)})"


def last_complete_checkpoint(folder: str | Path | None, needs_best: bool = False) -> Path | None:
    """The newest checkpoint in `folder` that is whole, or None; a warning names those that are passed over.

    Args:
        folder: Where training writes.
        needs_best: Whether the best checkpoint before it has to be whole as well.
    """
    found = {int(mark.parent.name.rpartition("-")[2]): mark.parent for mark in _marks(Path(folder or "."))}
    for step in sorted(found, reverse=True):
        checkpoint, fault = found[step], checkpoint_fault(found[step])
        if fault is None and needs_best:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            best = checkpoint.with_name(f"{PREFIX_CHECKPOINT_DIR}-{state.get('best_global_step') or step}")
            fault = None if best == checkpoint else checkpoint_fault(best)
            fault = None if fault is None else f"of its best checkpoint, {best.name}, {fault}"
        if fault is None:
            return checkpoint
        logging.getLogger(__name__).warning(
            "%s is damaged and is not used: %s; training goes on from an older checkpoint or, without one, from the start.",
            checkpoint,
            fault,
        )
    return None


def _marks(folder: Path) -> list[Path]:
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    return [mark for mark in folder.glob(f"*/{_COMPLETE}") if pattern.fullmatch(mark.parent.name)]
