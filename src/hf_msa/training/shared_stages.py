"""What stages have given, kept beside the runs by all that it depends on, so that seeds and ablations pay for it once.

An entry is a folder `<stage>-<key>`, where the key is a hash of what the stage depends on: data, code, fields of the
configuration, arguments, initial weights, the seed where it matters. It gets its name when everything is in it, lists its
files with their digests, and is taken only whole. Runs copy what they take, so the folder may be deleted at any time.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_msa.files import atomic_directory, atomic_write
from hf_msa.models.msa_files import file_fault

from .run_folder import STAGE_FILE, finish_stage, read_facts

SHARED_STAGES_FOLDER = "shared_stages"
TAKEN_FROM = "taken_from"
_MADE_BY = "made_by"


class SharedStages:
    """Entries of a folder of runs, which are added to, and those of another one.

    Args:
        runs: Folder of the runs.
        run: What the run is called that adds entries.
        other: Folder of other runs whose entries are taken as well; None: there are none.
    """

    def __init__(self, runs: Path, run: str, other: Path | None = None) -> None:
        self._folders = [place / SHARED_STAGES_FOLDER for place in (runs, other) if place is not None]
        self._run = run

    def take(self, name: str, depends_on: Mapping[str, Any], target: Path) -> dict[str, Any] | None:
        """Copy the files of an entry, each at once as a whole.

        Args:
            name: The stage, or a part of one.
            depends_on: All that it depends on, as JSON can hold it.
            target: Folder that the files are copied to.

        Returns:
            What is to be known of it, `taken_from` among it, the run that it was made by; None: there is no such entry.
        """
        for folder in self._folders:
            entry = folder / f"{name}-{_key(depends_on)}"
            if not (entry / STAGE_FILE).is_file():
                continue
            log, facts = logging.getLogger(__name__), read_facts(entry / STAGE_FILE)
            files, run = facts.pop("files"), facts.pop(_MADE_BY)
            fault = file_fault(entry, files, digests=True)
            if fault is not None:
                log.warning("The shared stage %s is damaged (%s) and is not taken.", entry, fault)
                continue
            for file in files:
                with atomic_write(target / file) as work:
                    shutil.copyfile(entry / file, work)
            log.warning("%s: taken from %s (%s), where it was made of the same things.", name, run, entry)
            return {**facts, TAKEN_FROM: run}
        return None

    def give(
        self, name: str, depends_on: Mapping[str, Any], source: Path, files: Sequence[str], facts: Mapping[str, Any]
    ) -> None:
        """Add an entry, unless it is there.

        Args:
            name, depends_on: See `take`.
            source: Folder of the files.
            files: Their names in it.
            facts: What is to be known of it.
        """
        entry = self._folders[0] / f"{name}-{_key(depends_on)}"
        if (entry / STAGE_FILE).is_file() and file_fault(entry, read_facts(entry / STAGE_FILE)["files"]) is None:
            return
        with atomic_directory(entry) as work:
            for file in files:
                (work / file).parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(source / file, work / file)
            finish_stage(work, {**facts, _MADE_BY: self._run})


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a finished file a second name, so that it takes no room; where the file system cannot, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _key(depends_on: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
