"""The loopback Hub as fixtures: this process and its children talk to it instead of the real one."""

import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopback_hub import WRITE_TOKEN, LoopbackHub


@pytest.fixture(scope="session")
def _server() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def loopback_hub(_server: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """An empty Hub that every client in this process and in its children uses; the token at hand may write.

    The libraries read most settings when they are imported, which may have happened long ago: so the environment is
    set for child processes, and the constants for this one.
    """
    import datasets.config
    import huggingface_hub.constants
    import huggingface_hub.utils._http

    _server.wipe()
    home = tmp_path / "hf_home"
    environment = {
        "HF_ENDPOINT": _server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_TOKEN": WRITE_TOKEN,
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        # A child on a busy machine may be slow to answer or to ask; ten seconds are the libraries' own.
        "HF_HUB_ETAG_TIMEOUT": "60",
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",
        "HF_DATASETS_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)

    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", _server.endpoint)
    template = _server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", environment["HF_HUB_CACHE"])
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", environment["HF_TOKEN_PATH"])
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", _server.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    # The clients wait between retries, 23 s in all; a test of what happens when they give up need not.
    hurried = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(huggingface_hub.utils._http, "time", hurried)
    return _server


@pytest.fixture
def run_python(loopback_hub: LoopbackHub, tmp_path: Path) -> Callable[..., str]:
    """Run a few lines in a fresh Python process that talks to the loopback Hub; returns what they print."""

    def run(code: str, *, without_hf_msa: bool = False, **environment: str) -> str:
        if without_hf_msa:
            code = "import sys; sys.modules['hf_msa'] = None\n" + code
        result = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return run
