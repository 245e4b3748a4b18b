"""The benchmark of servers runs, asks as many at once as it says, and no question twice."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks import server as bench

from loopback_mllm_server import Reply, Server, completion, token


def test_a_small_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, at_once, lock = Server(), [0, 0], threading.Lock()

    def reply(number: int, body: dict[str, Any]) -> Reply:
        with lock:
            at_once[0] += 1
            at_once[1] = max(at_once)
        time.sleep(0.05)
        with lock:
            at_once[0] -= 1
        return completion("1.0", [token("1", 0.9, 0.1), token(".0", 0.9, 0.1)])

    server.reply = reply
    options = ["--concurrency", "1", "4", "--requests", "8", "--repeats", "2", "--output", str(tmp_path)]
    bench.main([server.url, *options])
    server.close()
    content = json.loads((tmp_path / "server.json").read_text())
    rates = content["per_second"]
    assert list(rates) == ["1", "4"] and at_once[1] == 4
    assert rates["1"]["answers"]["high"] < 1 / 0.05 < rates["4"]["answers"]["median"]
    assert rates["4"]["tokens"]["median"] == pytest.approx(2 * rates["4"]["answers"]["median"])
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert len({*prompts}) == 1 + 2 * 2 * 8 == len(prompts) - 1  # one warms up each
    text = (tmp_path / "server.md").read_text()
    assert text in capsys.readouterr().out and "| 4 |" in text


def test_command_line_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["http://127.0.0.1:1/v1", "--concurrency", "0"])
    assert "must be at least 1" in capsys.readouterr().err
