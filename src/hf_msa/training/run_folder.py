"""The folder of a run: which of its stages can be shared, and what of them stays when it is finished."""

import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_msa.files import atomic_directory

STAGES_FOLDER = "stages"
STAGE_FILE = "stage.json"
# What resuming needs of a checkpoint beside its weights.
_TRAINING_STATE = ("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "training_args.bin", "*_state.safetensors")


def take_over_stages(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy stages that another run has finished and this one has not, each as a whole, without their checkpoints.

    Args:
        source: The other run's folder.
        target: This run's folder.
        names: The stages.
    """
    for name in names:
        made, wanted = source / STAGES_FOLDER / name, target / STAGES_FOLDER / name
        if (made / STAGE_FILE).is_file() and not (wanted / STAGE_FILE).is_file():
            with atomic_directory(wanted) as work:
                ignore = shutil.ignore_patterns(f"{PREFIX_CHECKPOINT_DIR}-*")
                shutil.copytree(made, work, ignore=ignore, dirs_exist_ok=True)


def tidy_stage(folder: Path, keep_checkpoints: bool) -> None:
    """Delete what a finished stage leaves of its training: checkpoints or, where they are to be kept, all but weights.

    Args:
        folder: The stage's folder.
        keep_checkpoints: Whether the weights of checkpoints stay, for analyses of training.
    """
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not keep_checkpoints:
            shutil.rmtree(checkpoint)
            continue
        for pattern in _TRAINING_STATE:
            for file in checkpoint.glob(pattern):
                file.unlink()


def tidy_run(folder: Path, kept: Iterable[str], keep_checkpoints: bool) -> None:
    """Delete what a finished run no longer needs of its stages: the checkpoint in its folder is what they were for.

    What each stage says of itself stays, and what analyses read.

    Args:
        folder: The run's folder.
        kept: Patterns of files and folders in the folder of stages that stay, e.g. ``"polarity/model/*"``.
        keep_checkpoints: Whether the weights of checkpoints stay.
    """
    patterns = [f"*/{STAGE_FILE}", *kept]
    if keep_checkpoints:
        patterns.append(f"*/{PREFIX_CHECKPOINT_DIR}-*")
    stages = folder / STAGES_FOLDER
    for file in sorted(stages.rglob("*"), reverse=True):
        name = file.relative_to(stages).as_posix()
        if file.is_dir() and not file.is_symlink():
            if not any(file.iterdir()):
                file.rmdir()
        elif not any(fnmatch(name, pattern) for pattern in patterns):
            file.unlink()
