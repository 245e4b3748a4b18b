"""Every flag of `TrainingArguments` works, or is refused with the reason; one that the library adds has to be put here."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from hf_msa.cli import training_flags
from hf_msa.errors import MsaError
from hf_msa.training.arguments import REFUSED, MsaTrainingArguments
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe, training_arguments

# What the run itself decides: where it writes, its seed (`--seeds`), and its place among processes.
OWN = {"output_dir", "seed", "local_rank"}
# Flag -> another value than its default, and the flags that it belongs with; all of them train to the end.
WORKS: dict[str, str] = {
    "per_device_train_batch_size": "8",
    "num_train_epochs": "0.5",
    "max_steps": "3",
    "learning_rate": "1e-4",
    "lr_scheduler_type": 'cosine_with_min_lr --lr_scheduler_kwargs {"min_lr":1e-6}',
    "lr_scheduler_kwargs": '{"min_lr":1e-6} --lr_scheduler_type cosine_with_min_lr',
    "warmup_steps": "0.2",
    "optim": "adafactor",
    "optim_args": "min_8bit_size=1 --optim adamw_torch",
    "weight_decay": "0.1",
    "adam_beta1": "0.8",
    "adam_beta2": "0.9",
    "adam_epsilon": "1e-6",
    "gradient_accumulation_steps": "2",
    "max_grad_norm": "0.5",
    "bf16": "true",
    "fp16": "true",  # on a GPU
    "tf32": "true",  # on a GPU
    "activation_checkpointing": "true",
    "activation_checkpointing_kwargs": '{"use_reentrant":false} --activation_checkpointing true',
    "gradient_checkpointing": "true",
    "gradient_checkpointing_kwargs": '{"use_reentrant":false} --gradient_checkpointing true',
    "torch_compile": "true --torch_compile_backend eager",
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default --torch_compile_backend eager",
    "neftune_noise_alpha": "5",
    "torch_empty_cache_steps": "2",
    "logging_strategy": "steps --logging_steps 2",
    "logging_steps": "2 --logging_strategy steps",
    "logging_first_step": "true",
    "log_on_each_node": "false",
    "include_num_input_tokens_seen": "true",
    "log_level": "info",
    "log_level_replica": "info",
    "disable_tqdm": "false",
    "report_to": "tensorboard",
    "run_name": "first",
    "project": "sentiment",
    "trackio_space_id": "org/space",
    "trackio_bucket_id": "org/bucket",
    "trackio_static_space_id": "org/static",
    "eval_strategy": "steps --eval_steps 2 --save_strategy steps --save_steps 2",
    "eval_steps": "2 --eval_strategy steps --save_strategy steps --save_steps 4",
    "eval_delay": "1",
    "per_device_eval_batch_size": "8",
    "save_strategy": "best",
    "save_steps": "2 --save_strategy steps --eval_strategy steps --eval_steps 2",
    "save_on_each_node": "true",
    "save_total_limit": "1",
    "load_best_model_at_end": "false",
    "metric_for_best_model": "mae",
    "greater_is_better": "false",
    "full_determinism": "true",
    "data_seed": "5",
    "use_cpu": "true",
    "dataloader_num_workers": "1",
    "dataloader_pin_memory": "false",
    "dataloader_persistent_workers": "true --dataloader_num_workers 1",
    "dataloader_prefetch_factor": "1 --dataloader_num_workers 1",
    "dataloader_multiprocessing_context": "spawn --dataloader_num_workers 1",
    "train_sampling_strategy": "random",
    "ddp_find_unused_parameters": "true",
    "ddp_bucket_cap_mb": "10",
    "ddp_broadcast_buffers": "false",
    "ddp_static_graph": "true",
    "ddp_backend": "gloo",
    "ddp_timeout": "60",
    "skip_memory_metrics": "false",
    "do_train": "true",
    "do_eval": "true",
    "text_learning_rate": "1e-5",
    "component_learning_rates": '{"regressor":1e-3}',
    "component_weight_decays": '{"regressor":0.1}',
    "early_stopping_patience": "1",
}
GPU = {"fp16", "tf32"}
SEVERAL_PROCESSES = {"ddp_backend"}  # test_distributed.py gives it


def flags_of(name: str, words: str) -> dict[str, Any]:
    return training_flags([f"--{name}", *words.split()])


def run(corpus: Path, output: Path, **flags: Any) -> dict[str, Any]:
    recipe = load_recipe("text/sample", assignments=["missing.selection_repeats=1"])
    folder = run_recipe(recipe, str(corpus), output, 1, {"num_train_epochs": 2, "use_cpu": True, **flags}).folder
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return found


def test_every_field_is_known() -> None:
    names = {field.name for field in dataclasses.fields(MsaTrainingArguments)}
    assert not set(WORKS) & set(REFUSED) and not OWN & (set(WORKS) | set(REFUSED))
    assert set(WORKS) | set(REFUSED) | OWN == names, "put a new training argument where it belongs, once it was tried"


# Other values than the default, by the kind of the default.
OTHER: dict[str, Any] = {
    "accelerator_config": {"split_batches": True},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "fsdp_config": {"min_num_params": 1},
    "hub_strategy": "end",
    "include_for_metrics": ["loss"],
    "label_smoothing_factor": 0.1,
    "length_column_name": "frames",
    "liger_kernel_config": {"rope": True},
    "eval_accumulation_steps": 2,
    "hub_private_repo": True,
    "parallelism_config": object(),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_not_do_what_it_says_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    default = {field.name: field.default for field in dataclasses.fields(MsaTrainingArguments)}[name]
    other = OTHER.get(name, "something" if default is None else not default)
    with pytest.raises(MsaError) as error:
        training_arguments(tmp_path / "main", {name: other, "use_cpu": True})
    assert f"{name} is not supported: {REFUSED[name]}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs is 0, with which nothing is trained"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs is nan"),
        ({"metric_for_best_model": "mae", "greater_is_better": True}, "'mae' falls as a model improves"),
        ({"metric_for_best_model": "eval_corr", "greater_is_better": False}, "'corr' grows as a model improves"),
        ({"greater_is_better": True}, "'loss' falls"),
        ({"train_sampling_strategy": "sequential"}, "give 'group_by_length' or 'random'"),
        ({"eval_strategy": "no"}, "load_best_model_at_end"),
    ],
)
def test_values_that_train_nothing_or_choose_the_worst_are_refused(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(MsaError, match=words) as error:
        training_arguments(tmp_path / "main", values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "flags", "words"),
    [
        ("text", {"report_to": "tensorboard"}, "tensorboard"),
        ("text", {"report_to": "nothing_known"}, "nothing_known"),
        ("text", {"lr_scheduler_type": "cosine_with_min_lr"}, "schedule 'cosine_with_min_lr' cannot be made"),
        ("text", {"optim": "adamw_8bit"}, "optimizer .* cannot be made"),
        ("text", {"eval_delay": 5}, "none was validated"),
        ("ubm", {"optim": "adafactor"}, "trained by Adam"),
    ],
)
def test_what_the_library_refuses_is_one_sentence(
    method: str, flags: dict[str, Any], words: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    if flags.get("report_to") == "tensorboard" and importlib.util.find_spec("tensorboard"):
        pytest.skip("tensorboard is there")
    recipe = load_recipe(f"{method}/sample", assignments=["missing.selection_repeats=1"])
    with pytest.raises(MsaError, match=words) as error:
        run_recipe(recipe, str(tiny_corpus), tmp_path, 1, {"max_steps": 1, "use_cpu": True, **flags})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "seed-1" / "run.json").exists()


def test_more_steps_than_the_epochs_of_the_recipe(tiny_corpus: Path, tmp_path: Path) -> None:
    trained = run(tiny_corpus, tmp_path, num_train_epochs=1, max_steps=10)
    assert trained["stages"][0]["epochs"] == pytest.approx(10 / 3)


def test_only_a_saved_checkpoint_can_be_the_best(tiny_corpus: Path, tmp_path: Path) -> None:
    """Validated at steps 2, 4, 6 and 7 and saved at 6 and 7: what is chosen was saved, though step 4 is better."""
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 6, "max_steps": 7}
    trained = run(tiny_corpus, tmp_path, **steps, learning_rate=2e-2)
    losses = {entry["step"]: entry["eval_loss"] for entry in trained["stages"][0]["history"] if "eval_loss" in entry}
    saved = min(6, 7, key=losses.__getitem__)
    assert losses[4] < losses[saved], "the test is of use only where an unsaved step is better"
    assert trained["selection"]["step"] == saved and trained["selection"]["value"] == losses[saved]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", sorted(set(WORKS) - SEVERAL_PROCESSES))
def test_what_works_trains_to_the_end(name: str, tiny_corpus: Path, tmp_path: Path) -> None:
    if name in GPU:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
    if name == "report_to" and not importlib.util.find_spec("tensorboard"):
        pytest.skip("needs tensorboard")
    flags = flags_of(name, WORKS[name])
    assert name in flags
    values = {**({} if name in GPU else {"use_cpu": True}), "disable_tqdm": True, **flags}
    assert run(tiny_corpus, tmp_path, **values)["selection"]["step"] > 0
