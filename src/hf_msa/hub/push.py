"""Pushing a finished run to the Hub, in one commit, and checking that what arrived predicts the same.

Files are sent first and the commit comes last, so a push that is interrupted leaves the repository as it was; the same
command again sends only what is not there yet.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_msa.errors import MsaError, reason
from hf_msa.evaluation.results import RESULTS_FILE
from hf_msa.hub import verify as verify_script
from hf_msa.hub.cards import CARD_FILE, RUN_FILE, card_of, find_results, read_run, without_local_paths
from hf_msa.methods import METHODS
from hf_msa.models.msa_files import FILES_LIST, file_fault, read_list
from hf_msa.uploads import check_repo_id, find_account, plain_errors, prepare_repo

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# What belongs to every checkpoint; what else belongs to one, its model says (`SIDE_FILES`). A list of what may go, not of
# what may not: a run's folder also collects predictions and analyses, which hold words of data sets that must not be
# passed on.
PUBLISHED = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.jinja",
    "*.py",
)
NEEDED = (RUN_FILE, "config.json", "*.safetensors", "processor_config.json")


@dataclass(frozen=True)
class Pushed:
    """What became of a push.

    Attributes:
        url: Where the repository is.
        commit: The commit that was made, or the one that already held the same files.
        verified: Whether it was downloaded into a clean process and gave equal logits.
    """

    url: str
    commit: str
    verified: bool

    def __str__(self) -> str:
        check = "reloaded in a clean process, logits equal" if self.verified else "not reloaded"
        return f"{self.url} (commit {self.commit[:7]}, {check})"


def push(
    run_folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    verify: bool = True,
) -> Pushed:
    """Upload a finished run, its card rendered with its results, and check what arrived.

    Args:
        run_folder: The folder of a run, e.g. ``runs/tcmr/seed-1111``; or the one above, if it holds a single run.
        repo_id: The Hub repository, ``"org/name"``; it is created where absent.
        private: Whether it is to be private.
        token: A Hub token that may write; default: the one that `hf auth login` or HF_TOKEN left.
        revision: The branch to push to; default: main.
        verify: Whether to download it again into a process without hf_msa and compare predictions, bit for bit.

    Returns:
        Where it is; as text, a line for people.

    Raises:
        MsaError: If the folder is no finished run, if the Hub does not let this account do it or cannot be reached, or
            if what arrived predicts something else.

    Example:
        ```python
        from hf_msa import push

        print(push("runs/text/seed-1", "org/text-sample"))
        ```
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = _run_folder(Path(run_folder))
    check_repo_id(repo_id)
    contents = _contents(folder, repo_id)
    run = read_run(folder)

    api = HfApi(token=token)
    account = find_account(api)
    with plain_errors(repo_id, account):
        prepare_repo(api, repo_id, private, revision)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path, content) for path, content in contents.items()],
            commit_message=f"Upload {run['method']} trained with seed {run['seed']}",
            revision=revision,
        )
    if verify:
        patterns = [file.pattern for file in METHODS[run["method"]].model_class.SIDE_FILES]
        beside = {path: content for path, content in contents.items() if any(fnmatch(path, p) for p in patterns)}
        _verify(folder, repo_id, commit.oid, api, beside)
    return Pushed(f"{api.endpoint}/{repo_id}", commit.oid, verify)


def _run_folder(folder: Path) -> Path:
    """The folder of one run, which must be complete."""
    seeds = sorted(path.parent for path in folder.glob(f"seed-*/{RUN_FILE}"))
    if not (folder / RUN_FILE).is_file() and seeds:
        if len(seeds) > 1:
            names = ", ".join(seed.name for seed in seeds)
            raise MsaError(f"{folder} holds several runs ({names}); push one of them, e.g. {seeds[0]}.")
        folder = seeds[0]
    absent = [pattern for pattern in NEEDED if not any(folder.glob(pattern))]
    if absent:
        raise MsaError(
            f"{folder} is not a finished run, it has no {absent[0]}; give the seed folder that `hf-msa train` wrote, "
            "or run the training command again to finish it."
        )
    fault = file_fault(folder, read_list(folder / FILES_LIST))
    if fault is not None:
        raise MsaError(
            f"{folder} is not whole: {fault}; copy all of it again, or run the training command again to make it anew."
        )
    return folder


def _contents(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Every file to publish: its path in the repository, and where it lies or its bytes."""
    run = read_run(folder)
    side_files = METHODS[run["method"]].model_class.SIDE_FILES
    belongs = {pattern: pattern == "config.json" for pattern in PUBLISHED}
    belongs |= {file.pattern: file.names_models for file in side_files}
    contents: dict[str, Path | bytes] = {}
    for pattern, names_models in belongs.items():
        for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
            contents[path.relative_to(folder).as_posix()] = _without_paths(path) if names_models else path
    listed = {name: facts for name, facts in read_list(folder / FILES_LIST).items() if name in contents}
    if listed:
        # Of a file that is published in another form, that form is what has to arrive.
        for name in listed:
            content = contents[name]
            if isinstance(content, bytes):
                listed[name] = {"size": len(content), "sha256": _digest(content)}
        contents[FILES_LIST] = _json_bytes({"files": listed})
    contents[RUN_FILE] = _json_bytes(without_local_paths(run))
    results = find_results(folder, run)
    if results is not None:
        contents[RESULTS_FILE] = _json_bytes(without_local_paths(results))
    contents[CARD_FILE] = card_of(folder, repo_id).encode()
    return contents


def _without_paths(path: Path) -> Path | bytes:
    """A configuration as it is or, where it names models by folders of this machine, by the last part of their paths."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise MsaError(f"{path} cannot be read ({reason(error)}); copy or train it again.") from error
    published = without_local_paths(content)
    return path if published == content else _json_bytes(published)


def _digest(content: Path | bytes) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).hexdigest()


def _json_bytes(value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise MsaError(
            "A file to publish holds NaN or infinity, which JSON has not; train or save it again."
        ) from error


def _verify(folder: Path, repo_id: str, commit: str, api: "HfApi", beside: Mapping[str, Path | bytes]) -> None:
    """Compare predictions and side files of the folder with those of the commit in a process without hf_msa."""
    import torch
    from huggingface_hub import get_token
    from safetensors.torch import load_file

    expected = verify_script.probe_logits(str(folder))
    with tempfile.TemporaryDirectory(prefix="hf-msa-push-") as scratch:
        output = Path(scratch) / "logits.safetensors"
        digests = Path(scratch) / "side_files.json"
        digests.write_text(json.dumps({path: _digest(content) for path, content in beside.items()}), encoding="utf-8")
        environment = {
            **os.environ,
            "HF_ENDPOINT": api.endpoint,
            "HF_HUB_CACHE": str(Path(scratch) / "hub"),
            "HF_MODULES_CACHE": str(Path(scratch) / "modules"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # Sums round differently over another number of threads.
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        token = api.token or get_token()
        if isinstance(token, str):
            environment["HF_TOKEN"] = token
        done = subprocess.run(
            [sys.executable, "-P", str(verify_script.__file__), repo_id, commit, str(output), str(digests)],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise MsaError(
                f"Commit {commit[:7]} of {repo_id} was pushed but does not load in a clean process ({lines[-1]}); do "
                "not use it, and push again once that is mended."
            )
        arrived = load_file(output)["logits"]
    if not torch.equal(arrived, expected):
        worst = (arrived - expected).abs().max().item() if arrived.shape == expected.shape else float("nan")
        raise MsaError(
            f"Commit {commit[:7]} of {repo_id} was pushed but predicts otherwise than {folder} (off by {worst:.3g}); "
            "do not use it, and push again from a folder that nothing else writes to."
        )
