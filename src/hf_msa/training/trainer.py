"""`transformers.Trainer` for multimodal sentiment analysis with missing modalities."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_msa.data.collator import MsaCollator
from hf_msa.data.rows import DrawnRows, MsaRows
from hf_msa.errors import unknown_name
from hf_msa.evaluation.metrics import regression_metrics
from hf_msa.files import write_json
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_schema import MODALITIES

from .arguments import MsaTrainingArguments
from .sampler import MsaBatchSampler

_COMPLETE = "complete.json"


def row_costs(rows: MsaRows) -> np.ndarray:
    """Number of positions of each row over all modalities `(rows,)`: what its batch has to be padded to."""
    costs: np.ndarray = np.sum([rows.lengths[name] for name in MODALITIES if name in rows.lengths], axis=0)
    return costs


class CompleteCheckpoints(Trainer):
    """Marks each checkpoint that was written to its end: one of a process that was killed while saving has no mark."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.save_state(folder)
            write_json(folder / _COMPLETE, {"global_step": self.state.global_step})

    def save_state(self, folder: Path) -> None:
        """Write what training carries along beside model and optimizer, e.g. tables or teachers; with every checkpoint.

        Args:
            folder: The checkpoint's folder, which counts as complete only after this.
        """


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
        train_dataset = DrawnRows(train_rows, max(1, int(np.ceil(args.num_train_epochs))) * self.passes)
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
            compute_metrics=self._metrics,
            callbacks=callbacks,
            **kwargs,
        )
        self._loss_sums: dict[str, Tensor] = {}
        self._loss_counts: dict[str, int] = {}

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        scores, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if scores.size != labels.size or not np.isfinite(scores).all():
            return {}
        metrics = regression_metrics(scores.reshape(-1), labels.reshape(-1), self.model.config.label_family)
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

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
        # The sampler has already cut the batches for this process: `accelerator.prepare` would cut them again.
        loader: DataLoader[dict[str, Any]] = DataLoaderShard(
            self.train_dataset,
            device=self.accelerator.device,
            batch_sampler=sampler,
            collate_fn=self.train_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.accelerator.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        return loader

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Rows that one epoch sees, for the log."""
        return len(self.train_rows) * self.passes

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[dict[str, Any]]:
        """Validation batches, in order of length."""
        given = None if isinstance(eval_dataset, str) else eval_dataset
        loader: DataLoader[dict[str, Any]] = DataLoader(
            self.eval_dataset if given is None else given,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.eval_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        prepared: DataLoader[dict[str, Any]] = self.accelerator.prepare(loader)
        return prepared

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
            for name, value in (outputs.losses or {}).items():
                self._loss_sums[name] = self._loss_sums.get(name, torch.zeros_like(value)) + value
                self._loss_counts[name] = self._loss_counts.get(name, 0) + 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, scores and labels of one validation batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        labels = inputs["labels"]
        scores = torch.full_like(labels, float("nan")) if outputs.logits is None else outputs.logits.float()
        return loss.detach().float(), scores.detach(), labels

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate; see `transformers.Trainer.evaluate`."""
        # Each process counts batch statistics of its own: what is validated has to be what the main process saves.
        broadcast(list(self.model.buffers()))
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of every named loss since the last log."""
        if "loss" in logs:
            logs |= {
                f"loss_{name}": (total / self._loss_counts[name]).item() for name, total in self._loss_sums.items()
            }
            logs |= self.model.logged_values()
            self._loss_sums.clear()
            self._loss_counts.clear()
        super().log(logs, start_time)

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
                component = name.partition(".")[0]
                rate = rates.get(component, self.args.learning_rate)
                decay = decays.get(component, self.args.weight_decay) if name in decayed else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        options.pop("lr", None)
        optimizer: torch.optim.Optimizer = optimizer_class(
            [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
            **options,
        )
        return optimizer

    def _component_numbers(self, given: dict[str, Any] | str | None) -> dict[str, float]:
        """Numbers by component, of which the model has each unless the data lacks its modality."""
        numbers = dict(cast("dict[str, float]", given or {}))
        components = {name.partition(".")[0] for name, _ in self.model.named_parameters()}
        lacking = set(MODALITIES) - set(self.model.config.modalities)
        for component in numbers:
            if component not in components and component.partition("_")[0] not in lacking:
                raise unknown_name(f"component of {type(self.model).__name__}", component, components)
        return numbers

    def load_state(self, folder: Path) -> None:
        """Restore what `save_state` wrote; called before training goes on.

        Args:
            folder: The checkpoint's folder.
        """

    def save_products(self, folder: Path) -> None:
        """Write what the stage gives beside its model, e.g. tables for later stages; called when it has ended.

        Args:
            folder: The stage's folder.
        """

    def fit(self) -> TrainerState:
        """Train to the end, from the last complete checkpoint in the output folder where there is one.

        Returns:
            The trainer's state; the model then holds the weights of the best checkpoint, or of the last one without
            `load_best_model_at_end`.
        """
        checkpoint = last_complete_checkpoint(self.args.output_dir)
        if checkpoint is not None:
            self.load_state(checkpoint)
        if checkpoint is not None and self._has_stopped_early(checkpoint):
            self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self._load_best_model()
        else:
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return self.state

    def _has_stopped_early(self, checkpoint: Path) -> bool:
        """Whether the run had already ended by early stopping when this checkpoint was written."""
        saved = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        counter = saved["stateful_callbacks"].get("EarlyStoppingCallback", {}).get("attributes", {})
        patience = self.args.early_stopping_patience if self.args.load_best_model_at_end else None
        return patience is not None and counter.get("early_stopping_patience_counter", 0) >= patience


class AdamTrainer(MsaTrainer):
    """Plain Adam whatever `args.optim` says, so that weight decay is coupled, as in the public code of several methods."""

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: PreTrainedModel | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Adam with the betas and epsilon of `args`."""
        options = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        return torch.optim.Adam, options


def last_complete_checkpoint(folder: str | Path | None) -> Path | None:
    """The newest checkpoint in `folder` that was written to its end, or None."""
    found = sorted(
        (json.loads(mark.read_text(encoding="utf-8"))["global_step"], mark.parent)
        for mark in Path(folder or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*/{_COMPLETE}")
    )
    return found[-1][1] if found else None
