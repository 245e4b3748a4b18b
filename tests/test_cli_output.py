"""What commands print gets through, however the terminal is made, and what they raise: sentences, or a bug."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

from hf_msa_cli import main
from hub_answers import answer

RESULTS = Path(__file__).parent / "fixtures" / "results"
COMPARE = ["compare", str(RESULTS / "sample-text"), str(RESULTS / "sample-tcmr")]


def shell(command: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit status and standard error of a shell command, in which $HF_MSA is the program."""
    program = f'"{sys.executable}" -m hf_msa_cli'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('$HF_MSA', program)}"],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_tables_survive_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert main(COMPARE) == 0
    printed = raw.getvalue().decode(encoding)
    assert "63.32" in printed and ("+/- std" in printed if encoding == "ascii" else "± std" in printed)


def test_words_survive_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr("hf_msa.cli.recipes", lambda **_: print("很好 ± \ud800"))
    assert main(["recipes"]) == 0
    assert raw.getvalue().decode("ascii") == "\\u5f88\\u597d +/- \\ud800\n"


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("$HF_MSA recipes | true", 141, ""),
        ("$HF_MSA recipes > /dev/full", 2, "hf-msa recipes: There is no space left to write; free some and run"),
        pytest.param("$HF_MSA recipes >&- 2>&-", 0, "", marks=pytest.mark.slow),
        (
            "mkdir gone; cd gone; rmdir ../gone; $HF_MSA recipes",
            2,
            "hf-msa: the current folder does not exist any more",
        ),
    ],
)
def test_output_and_folder_may_go_away(tmp_path: Path, command: str, status: int, said: str) -> None:
    found, message = shell(command, tmp_path)
    assert (found, message.count("\n")) == (status, bool(said)), message
    assert message.startswith(said)


def failing(error: BaseException) -> Callable[..., None]:
    def fail(**_: Any) -> None:
        raise error

    return fail


def hub_error(status: int, kind: type[errors.HfHubHTTPError] = errors.HfHubHTTPError) -> errors.HfHubHTTPError:
    return kind("no", response=answer(status))


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (hub_error(401), "The Hub answered 401; the token is missing or wrong: run `hf auth login`, or set HF_TOKEN."),
        (hub_error(403), "The Hub answered 403; this account or token may not do that"),
        (hub_error(404), "The Hub answered 404; check the name"),
        (
            hub_error(401, errors.RepositoryNotFoundError),
            "The Hub answered 401; check the name, and for what is private",
        ),
        (hub_error(403, errors.GatedRepoError), "The Hub answered 403; ask for access on its page"),
        (hub_error(429), "The Hub answered 429; that was too often: wait a few minutes and try again."),
        (hub_error(503), "The Hub answered 503; it has trouble of its own: try again later."),
        (hub_error(418), "The Hub answered 418; mend that and try again."),
        (errors.HTTPError("cut off"), "The connection failed (cut off); check the network and try again."),
        (
            ConnectionResetError(104, "Connection reset by peer"),
            "The connection failed ([Errno 104] Connection reset by",
        ),
        (caused(RuntimeError("upload"), hub_error(429)), "The Hub answered 429"),
        (caused(ValueError("load"), errors.HTTPError("cut off")), "The connection failed (cut off)"),
        (errors.OfflineModeIsEnabled("no"), "The Hub cannot be used offline; unset HF_HUB_OFFLINE and try again."),
        (errors.LocalTokenNotFoundError("no"), "There is no Hub token; run `hf auth login`, or set HF_TOKEN."),
        (ConnectionError("The server 'x' refused; do this"), "The server 'x' refused; do this."),
        (PermissionError(13, "Permission denied", "a/b"), "'a/b' cannot be used: Permission denied."),
        (OSError("Consistency check failed: 3 bytes"), "A file arrived damaged; try again."),
        (
            OSError("no hf_abcdefgh at https://me:pw@host/x"),  # pragma: allowlist secret
            "no [token] at https://host/x.",
        ),
        (OSError("sent Authorization: Bearer abc.def"), "sent Authorization: Bearer [token]."),
    ],
)
def test_what_networks_and_disks_do_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, sentence: str
) -> None:
    monkeypatch.setattr("hf_msa.cli.recipes", failing(error))
    assert main(["recipes"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hf-msa recipes: {sentence}") and said.count("\n") == 1 and said.endswith(".\n")


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a bug"),
        ValueError("a number that the code got wrong"),
        RuntimeError("shapes"),
        caused(KeyError("a bug on the way"), hub_error(404)),
        caused(AttributeError("a bug on the way"), errors.HTTPError("cut off")),
    ],
)
def test_a_bug_stays_a_traceback(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr("hf_msa.cli.recipes", failing(error))
    with pytest.raises(type(error)):
        main(["recipes"])
