"""A Hub where one request goes wrong: every command that talks to it succeeds all the same, or says one sentence."""

import hashlib
import json
import shutil
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import HfApi, HfFileSystem

from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.hub.push import push
from hf_msa_cli import main
from loopback_hub import OWNER, LoopbackHub
from pickle_factory import mmsa, write
from test_push import save_run

FAULTS = (401, 403, 404, 429, 500, None, "truncated", "damaged", "slow")
RUN, DATA, NEW = f"{OWNER}/run", f"{OWNER}/rows", f"{OWNER}/new"
COMMANDS: dict[str, tuple[str, ...]] = {
    "push": ("push", "runs/seed-1112", NEW, "--no-verify"),
    "prepare": ("prepare", "mosi", "--source", "raw.pkl", "--output", "prepared", "--push-to-hub", NEW),
    "predict": ("predict", RUN, "--text", "i really liked it"),
    "evaluate": ("evaluate", RUN, "--data", DATA, "--output", "out", "--protocol", "complete"),
}


@pytest.fixture
def hub(loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The loopback Hub with a run and a data set; the current folder has a run and raw data to send."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_msa.evaluation.plots.plot_curves", lambda *_, **__: [])
    push(save_run(tmp_path / "runs" / "seed-1112", vision_dim=20), RUN, verify=False)
    corpus = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=5, version=1)
    HfApi().create_repo(DATA, repo_type="dataset")
    HfApi().upload_folder(
        repo_id=DATA, repo_type="dataset", folder_path=corpus, ignore_patterns=["truth/*", "text_model/*"]
    )
    write(tmp_path / "raw.pkl", mmsa())
    return loopback_hub


class Attempt:
    """One command on a machine with empty caches, at a Hub where the `nth` request meets a fault.

    Attributes:
        end: `"success"`, `"sentence"`, or what is wrong with its end.
        made: What it made: the prediction, the numbers, or the files on the Hub by their hashes.
        requests: What was asked of the Hub.
    """

    def __init__(
        self,
        command: str,
        hub: LoopbackHub,
        capsys: pytest.CaptureFixture[str],
        fault: int | str | None = None,
        nth: int | None = None,
    ) -> None:
        for name in ("hf_home", "out", "prepared"):
            shutil.rmtree(name, ignore_errors=True)
        HfFileSystem.clear_instance_cache()
        for repo in [repo for repo in hub.repos if repo[1] == NEW]:
            del hub.repos[repo]
        hub.faults.clear()
        hub.requests.clear()
        if nth is not None:
            hub.fail(None, "", nth=nth, times=1, status=fault)
        capsys.readouterr()
        try:
            status = main(COMMANDS[command])
        except BaseException:
            self.end, status, said = traceback.format_exc(), -1, []
        else:
            printed = capsys.readouterr()
            said = [line for line in printed.err.replace("\r", "\n").splitlines() if line.startswith("hf-msa")]
            sentence = status == 2 and len(said) == 1 and said[0].endswith((".", "?")) and "hf_write" not in said[0]
            succeeded = status == 0 and not said
            self.end = "success" if succeeded else "sentence" if sentence else f"status {status}: {said}"
        self.requests = list(hub.requests)
        self.made: object = None
        if status == 0 and command == "predict":
            self.made = printed.out
        elif status == 0 and command == "evaluate":
            self.made = json.loads(Path("out/results.json").read_text())["runs"]
        elif command in ("push", "prepare"):
            files = next((repo.at("main").files for (_, name), repo in hub.repos.items() if name == NEW), {})
            found = {name: hashlib.sha256(blob.data).hexdigest() for name, blob in files.items()}
            self.made = {name: digest for name, digest in found.items() if name != ".gitattributes"} or None


def try_faults(
    command: str, hub: LoopbackHub, capsys: pytest.CaptureFixture[str], faults: Sequence[int | str | None], step: int
) -> Counter[str]:
    """Let each `step`-th request of a command meet each fault."""
    right = Attempt(command, hub, capsys)
    assert right.end == "success" and right.made
    counts: Counter[str] = Counter()
    wrong = []
    for fault in faults:
        for nth in range(1, len(right.requests) + 1, step):
            tried = Attempt(command, hub, capsys, fault, nth)
            where = (command, fault, right.requests[nth - 1], tried.end)
            # All or nothing. "There is no such file", of one that is there but not needed, cannot be told from the truth.
            expected = [right.made] if tried.end == "success" else [None, right.made]
            if tried.end not in ("success", "sentence") or not (tried.made in expected or fault == 404):
                wrong.append(where)
            counts[tried.end] += 1
    assert not wrong, wrong
    return counts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_request_meets_every_fault(hub: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    total: Counter[str] = Counter()
    lines = []
    for command in COMMANDS:
        counts = try_faults(command, hub, capsys, FAULTS, 1)
        total += counts
        lines.append(f"{command}: tried {counts.total()}, {dict(counts)}")
    with capsys.disabled():
        print("", *lines, f"all: tried {total.total()}, {dict(total)}, tracebacks 0", sep="\n")
    assert total.total() > 700


@pytest.mark.parametrize("command", ["push", "prepare"])
def test_uploads_are_all_or_nothing(hub: LoopbackHub, capsys: pytest.CaptureFixture[str], command: str) -> None:
    counts = try_faults(command, hub, capsys, [fault for fault in FAULTS if fault != "slow"], 2)
    assert counts["sentence"] > counts["success"] > 0


def test_predicting_meets_faults(hub: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_faults("predict", hub, capsys, (401, None, "damaged"), 5).total() > 10
