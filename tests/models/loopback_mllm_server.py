"""A server of chat completions in this process, for tests: it answers as it is told, and keeps what it was sent."""

import json
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and content."""


def token(text: str, *top: float) -> dict[str, Any]:
    """A token of probability `top[0]`, and others of the probabilities that follow."""
    listed = [{"token": text if n == 0 else f"other{n}", "logprob": math.log(p)} for n, p in enumerate(top)]
    return {"token": text, "logprob": math.log(top[0]), "top_logprobs": listed}


def completion(content: str, tokens: list[dict[str, Any]] | None) -> Reply:
    logprobs = None if tokens is None else {"content": tokens}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": content},
        "logprobs": logprobs,
    }
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return 200, {}, json.dumps(body).encode()


class Server:
    """Answers with `reply`, which gets the number of the call and its body, and keeps what it was sent.

    Its list of models is that of `models`; None: it has no such list.
    """

    def __init__(self) -> None:
        self.reply: Callable[[int, dict[str, Any]], Reply] = lambda number, body: completion("0", [token("0", 1.0)])
        self.models: list[str] | None = None
        self.lists = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                with outer.lock:
                    outer.lists += 1
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                listed = None if outer.models is None else {"data": [{"id": name} for name in outer.models]}
                self.answer(404 if listed is None else 200, {}, json.dumps(listed).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.paths.append(self.path)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                status, headers, content = outer.reply(number, body)
                with outer.lock:
                    outer.at_once -= 1
                self.answer(status, headers, content)

            def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # the client has given up waiting

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self.http.shutdown()
        self.http.server_close()
