"""Pushing a finished run to the Hub, in one commit, and checking that what arrived predicts the same.

Files are sent first and the commit comes last, so a push that is interrupted leaves the repository as it was; the same
command again sends only what is not there yet.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_msa.errors import MsaError
from hf_msa.evaluation.results import RESULTS_FILE
from hf_msa.hub import verify as verify_script
from hf_msa.hub.cards import CARD_FILE, RUN_FILE, card_of, find_results, read_run, without_local_paths
from hf_msa.methods import METHODS
from hf_msa.models.msa_files import FILES_LIST, file_fault, read_list

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


def push_run(
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
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = _run_folder(Path(run_folder))
    _check_repo_id(repo_id)
    contents = _contents(folder, repo_id)
    run = read_run(folder)

    api = HfApi(token=token)
    account = _account(api)
    with _plain_errors(repo_id, account):
        _prepare_repo(api, repo_id, private, revision)
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


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise MsaError(
            f"{repo_id!r} is not the name of a Hub repository; give ORG/NAME, with letters, digits, '-', '_' and '.'."
        )


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
    content = json.loads(path.read_text(encoding="utf-8"))
    published = without_local_paths(content)
    return path if published == content else _json_bytes(published)


def _digest(content: Path | bytes) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).hexdigest()


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _account(api: "HfApi") -> dict[str, Any]:
    """Who the token belongs to; refuse one that is absent, unknown or may only read."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    settings = f"{api.endpoint}/settings/tokens"
    if not (api.token or get_token()):
        raise MsaError(
            f"There is no Hub token: make one with the right to write at {settings}, then `hf auth login` or set "
            "HF_TOKEN."
        )
    with _plain_errors(api.endpoint, {}):
        try:
            account: dict[str, Any] = api.whoami()
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise MsaError(
                    f"The Hub does not accept this token; make a new one with the right to write at {settings}, then "
                    "`hf auth login`, or set HF_TOKEN, which goes before a login."
                ) from error
            raise
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise MsaError(
            f"The Hub token of {account['name']} may only read; make one with the right to write at {settings}, then "
            "`hf auth login` or set HF_TOKEN."
        )
    return account


def _prepare_repo(api: "HfApi", repo_id: str, private: bool, revision: str | None) -> None:
    """Create the repository and the branch where absent; never put something private where all can see it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        if private and not api.model_info(repo_id).private:
            raise MsaError(
                f"{repo_id} exists already and is public; choose another name, make it private in its settings, or "
                "push without asking for private."
            )
    except RepositoryNotFoundError:
        pass
    # None and not False: an organisation may make all its repositories private.
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)


@contextlib.contextmanager
def _plain_errors(repo_id: str, account: dict[str, Any]) -> Iterator[None]:
    """Say in one sentence what went wrong on the way to the Hub and what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    again = "nothing is half-written there, and the same command again sends only what has not arrived"
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        # An upload thread wraps what it met.
        root = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        reason = (getattr(root, "server_message", None) or str(root) or type(root).__name__).strip().split("\n")[0]
        status = root.response.status_code if isinstance(root, HfHubHTTPError) else None
        if isinstance(root, OfflineModeIsEnabled):
            message = "The Hub cannot be used offline; unset HF_HUB_OFFLINE and push again."
        elif status in (401, 403, 404):
            places = [account["name"], *(org["name"] for org in account.get("orgs", []))]
            message = (
                f"{places[0]} may not write to {repo_id} (the Hub answered {status}); choose a name under "
                f"{' or '.join(places)}, or use a token with the right to write there."
            )
        elif status is None or status >= 500 or status == 429:
            message = f"The push did not get through ({reason}); try again later: {again}."
        else:
            message = f"The Hub refused the push to {repo_id} ({status}: {reason}); mend that and push again."
        raise MsaError(message) from error


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
