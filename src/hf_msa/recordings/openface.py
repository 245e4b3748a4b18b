"""OpenFace 2's own program, where it is installed: from a video to the table of its faces."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from hf_msa.data.feature_files import FeatureTable, read_feature_file
from hf_msa.data.sources import regular_file
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.models.msa_feature_sets import FeatureSet, Frames
from hf_msa.models.msa_openface import select_columns

PROGRAM = "FeatureExtraction"
# All groups of columns; the pictures of aligned faces and the HOG files, which it writes by default, stay away.
_OUTPUTS = ("-2Dfp", "-3Dfp", "-pdmparams", "-pose", "-aus", "-gaze")


def has_openface() -> bool:
    """Whether OpenFace 2's `FeatureExtraction` is on the PATH."""
    return shutil.which(PROGRAM) is not None


def openface_table(recording: str | Path, *, seconds: float = 600.0) -> FeatureTable:
    """Run OpenFace 2 on a video.

    Args:
        recording: The file.
        seconds: How long it may take.

    Returns:
        All its columns, of the frames in which a face was found; see `read_feature_file`.

    Raises:
        MsaError: If OpenFace is not installed, the video is not there, or it fails, takes too long or writes no table.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise MsaError(
            f"The program {PROGRAM!r} is not on the PATH; install OpenFace 2, or give the tables that it made."
        )
    file = regular_file(Path(recording)).resolve()
    with tempfile.TemporaryDirectory(prefix="hf_msa_openface_") as folder:
        command = [program, "-f", str(file), "-out_dir", folder, "-of", "faces", "-q", *_OUTPUTS]
        said = _run(command, seconds, file)
        tables = sorted(Path(folder).glob("*.csv"))
        if not tables:
            raise MsaError(f"OpenFace wrote no table for {file}{said}; is it a video that it can read?")
        return read_feature_file(tables[0])


def openface_frames(features: FeatureSet, file: Path, start: float = 0.0, end: float | None = None) -> Frames | None:
    """Run OpenFace 2 on a video, and take the columns of a feature set.

    Args:
        features: A set that OpenFace makes.
        file: The video; all of it is looked at.
        start, end: Which part to give, in seconds; by default all.

    Returns:
        The frames with a face, at seconds since `start`; None if the table does not say when they are.

    Raises:
        MsaError: As `openface_table`, or if the table lacks a column.
    """
    table = openface_table(file)
    if table.names is None or table.times is None:
        return None
    with as_msa_errors():
        values = select_columns(table.names, table.values, features.columns)
    within = (table.times >= start) & (table.times < (np.inf if end is None else end))
    looked_at = int(within.sum()) if table.faces is None else table.faces.frames
    values = np.nan_to_num(values[within], posinf=0.0, neginf=0.0)
    return Frames(values, table.times[within] - start, looked_at)


def _run(command: list[str], seconds: float, file: Path) -> str:
    """Run a command, with what it starts; returns its last words, for a sentence.

    Raises:
        MsaError: If it cannot be started, fails, or is stopped after so many seconds.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # So that what it starts is stopped with it.
        )
    except OSError as error:
        raise MsaError(f"OpenFace cannot be started as {command[0]}: {error.strerror}.") from error
    with process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise MsaError(
                    f"OpenFace took more than {seconds:g} s for {file} and was stopped; cut it, or give it more time."
                ) from error
            raise
    words = output.decode("utf-8", "replace").strip().splitlines()
    said = f" ({words[-1].strip()[:200]})" if words else ""
    if process.returncode:
        raise MsaError(
            f"OpenFace failed on {file} with status {process.returncode}{said}; is it a video that it can read?"
        )
    return said
