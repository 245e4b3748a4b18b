"""The folder of a run: which of its stages can be shared, and what of them stays when it is finished."""

import logging
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_msa.errors import MsaError, reason
from hf_msa.files import atomic_directory, read_json, write_json
from hf_msa.models.msa_files import FILES_LIST, file_facts, file_fault, read_list

RUN_FILE = "run.json"
STAGES_FOLDER = "stages"
STAGE_FILE = "stage.json"
_DAMAGED = ".damaged"
# What resuming needs of a checkpoint beside its weights.
_TRAINING_STATE = ("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "training_args.bin", "*_state.safetensors")


def read_facts(file: Path) -> dict[str, Any]:
    """Read what a run says of itself.

    Raises:
        MsaError: If the file is damaged.
    """
    try:
        found: dict[str, Any] = dict(read_json(file))
    except (TypeError, ValueError) as error:
        raise MsaError(
            f"{str(file)!r} is damaged ({reason(error)}); delete the folder {str(file.parent)!r} to start the run anew, or "
            "copy the file again."
        ) from error
    return found


def finish_stage(folder: Path, facts: Mapping[str, Any]) -> None:
    """Mark a stage as finished, with the files that it gives.

    Args:
        folder: The stage's folder.
        facts: What is to be known of it.
    """
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    given = {name for name in names if not name.startswith((f"{PREFIX_CHECKPOINT_DIR}-", ".")) and name != STAGE_FILE}
    write_json(folder / STAGE_FILE, {**facts, "files": file_facts(folder, given)})


def read_stage(folder: Path) -> dict[str, Any]:
    """What is to be known of a finished stage, without its files."""
    facts = read_facts(folder / STAGE_FILE)
    facts.pop("files", None)
    return facts


def _stage_fault(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a finished stage, and the files that it gives; those of earlier versions do not list them."""
    try:
        files = read_json(folder / STAGE_FILE).get("files", {})
    except (AttributeError, ValueError) as error:
        return f"{STAGE_FILE!r} cannot be read ({reason(error)})", {}
    return file_fault(folder, files, digests=True), files


def set_damaged_stages_aside(folder: Path) -> None:
    """Make finished stages unfinished of which a file is missing or changed, so that they are made anew.

    Changed files are renamed, as a later stage would read them; of the others an unfinished stage makes use.

    Args:
        folder: The run's folder.
    """
    for mark in sorted(folder.glob(f"{STAGES_FOLDER}/*/{STAGE_FILE}")):
        fault, files = _stage_fault(mark.parent)
        if fault is None:
            continue
        logging.getLogger(__name__).warning(
            "The stage %r of %s is damaged (%s) and is made anew.", mark.parent.name, folder, fault
        )
        for name, facts in files.items():
            file = mark.parent / name
            if file.is_file() and file_fault(mark.parent, {name: facts}, digests=True) is not None:
                file.replace(file.with_name(file.name + _DAMAGED))
        mark.unlink()


def check_finished_run(folder: Path) -> None:
    """Check that the checkpoint of a finished run is whole, every byte of it.

    Raises:
        MsaError: Naming the file that is missing or changed.
    """
    read_facts(folder / RUN_FILE)
    fault = file_fault(folder, read_list(folder / FILES_LIST), digests=True)
    for pattern in ("config.json", "*.safetensors", "processor_config.json"):
        if fault is None and not any(folder.glob(pattern)):
            fault = f"{pattern!r} is missing"
    if fault is not None:
        raise MsaError(
            f"The finished run {str(folder)!r} is damaged: {fault}; copy it again, or delete {str(folder / RUN_FILE)!r} and "
            "give the command again to train what is lost."
        )


def take_over_stages(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy stages that another run has finished and this one has not, each as a whole, without their checkpoints.

    Args:
        source: The other run's folder.
        target: This run's folder.
        names: The stages.
    """
    for name in names:
        made, wanted = source / STAGES_FOLDER / name, target / STAGES_FOLDER / name
        is_made = (made / STAGE_FILE).is_file() and not (wanted / STAGE_FILE).is_file()
        if is_made and _stage_fault(made)[0] is None:
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
