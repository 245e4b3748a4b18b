"""The endpoint back end against a loopback server: what is sent, what is read, and every way in which it can fail."""

import base64
import contextlib
import io
import json
import math
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_msa.models import msa_mllm_endpoint
from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_mllm_answers import label_entropy, label_entropy_bounds, parse_score
from hf_msa.models.msa_mllm_endpoint import EndpointMllm, allow_endpoint, allowed_endpoint, entropy_bounds
from tiny_mllm import tiny_audio, tiny_frames

Reply = tuple[int, dict[str, str], bytes]


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


SCORE = completion("-0.4", [token("-0", 0.5, 0.5), token(".4", 0.9, 0.1), token("<|im_end|>", 1.0)])


class Server:
    """Answers with `reply`, which gets the number of the call and its body, and keeps what it was sent."""

    def __init__(self) -> None:
        self.reply: Callable[[int, dict[str, Any]], Reply] = lambda number, body: SCORE
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
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
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def endpoint(server: Server, **options: Any) -> EndpointMllm:
    return EndpointMllm(server.url, **{"token": "secret", "timeout": 20.0, "retries": 2, "backoff": 0.01, **options})


class TestBounds:
    def test_a_full_list_leaves_nothing_open(self) -> None:
        third = math.log(1 / 3)
        assert entropy_bounds([third] * 3, 3) == pytest.approx((1.098612, 1.098612), abs=1e-6)
        assert entropy_bounds([math.log(0.9), math.log(0.05), math.log(0.05)], 100)[0] == pytest.approx(0.394398)

    def test_the_rest_on_one_token_or_spread_over_all_others(self) -> None:
        low, high = entropy_bounds([math.log(0.7), math.log(0.2)], 12)
        known = -0.7 * math.log(0.7) - 0.2 * math.log(0.2)
        assert low == pytest.approx(known - 0.1 * math.log(0.1))
        assert high == pytest.approx(known - 0.1 * math.log(0.1 / 10))

    def test_no_other_token_has_more_than_the_least_listed(self) -> None:
        low, _ = entropy_bounds([math.log(0.5), math.log(0.2)], 100)  # the rest of .3 needs two tokens: .2 and .1
        assert low == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.2, 0.2, 0.1)))

    @pytest.mark.parametrize("seed", range(20))
    def test_the_true_entropy_lies_between(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        truth = np.sort(generator.dirichlet(np.full(50, 0.2)))[::-1]
        entropy = float(-(truth[truth > 0] * np.log(truth[truth > 0])).sum())
        for listed in (1, 5, 20, 50):
            low, high = entropy_bounds(np.log(np.maximum(truth[:listed], 1e-300)), 50)
            assert low - 1e-9 <= entropy <= high + 1e-9

    def test_what_servers_round_or_leave_at_minus_infinity_does_no_harm(self) -> None:
        assert entropy_bounds([0.0, -math.inf], 10) == (0.0, 0.0)
        assert entropy_bounds([1e-6, -9999.0], 10) == pytest.approx((0.0, 0.0), abs=1e-5)


class TestSuccess:
    def test_reads_text_tokens_and_bounded_entropies(self, server: Server) -> None:
        tokens = [token("-0", 0.5, 0.3), token(".4", 0.9, 0.1), token("<|im_end|>", 1.0)]
        server.reply = lambda number, body: completion("-0.4", tokens)
        ((answer,),) = endpoint(server, vocabulary_size=102).generate([MllmRequest("Score?")], 8)
        assert (answer.text, answer.token_texts) == ("-0.4", ("-0", ".4", ""))
        assert answer.token_logprobs == pytest.approx((math.log(0.5), math.log(0.9), 0.0))
        bounds = entropy_bounds([math.log(0.5), math.log(0.3)], 102)
        assert answer.token_entropy_bounds is not None
        assert answer.token_entropy_bounds[0] == pytest.approx(bounds)
        assert answer.token_entropies[0] == pytest.approx(sum(bounds) / 2)
        assert parse_score(answer.text) == -0.4
        exact = entropy_bounds([math.log(0.9), math.log(0.1)], 102)[0]
        assert label_entropy(answer) == pytest.approx((sum(bounds) / 2 + exact) / 2)
        assert label_entropy_bounds(answer) == pytest.approx(((bounds[0] + exact) / 2, (bounds[1] + exact) / 2))

    def test_a_text_that_the_server_stripped_still_finds_its_tokens(self, server: Server) -> None:
        server.reply = lambda number, body: completion("1.2", [token(" 1", 1.0), token(".2", 1.0), token("\n", 1.0)])
        ((answer,),) = endpoint(server).generate([MllmRequest("Score?")], 8)
        assert answer.token_texts == ("1", ".2", "")

    def test_sends_the_prompt_the_media_and_what_is_asked_for(self, server: Server) -> None:
        audio, frames = tiny_audio(seconds=0.1), tiny_frames(count=2)
        request = MllmRequest("Score?", audio, frames, system="Be brief.")
        endpoint(server, model="omni", top_logprobs=7).generate([request], 8)
        (body,) = server.bodies
        assert server.paths == ["/v1/chat/completions"]
        assert server.headers[0]["authorization"] == "Bearer secret"
        assert body["model"] == "omni"
        assert (body["logprobs"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == (True, 7, 8, 0.0)
        system, user = body["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        sound, first, second, text = user["content"]
        assert text == {"type": "text", "text": "Score?"}
        with wave.open(io.BytesIO(base64.b64decode(sound["input_audio"]["data"]))) as file:
            assert (file.getnchannels(), file.getframerate(), sound["input_audio"]["format"]) == (1, 16000, "wav")
            sent = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
        assert sent == pytest.approx(audio, abs=1e-4)
        for part, frame in ((first, frames[0]), (second, frames[1])):
            kind, _, data = part["image_url"]["url"].partition(",")
            assert kind == "data:image/png;base64"
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), frame)

    def test_a_missing_modality_is_left_out(self, server: Server) -> None:
        endpoint(server).generate([MllmRequest("Score?")], 8)
        assert server.bodies[0]["messages"] == [{"role": "user", "content": "Score?"}]

    def test_answers_are_in_order_and_a_few_are_under_way_at_once(self, server: Server) -> None:
        def reply(number: int, body: dict[str, Any]) -> Reply:
            time.sleep(0.05)
            text = f"{body['messages'][0]['content']}{body['seed']}"
            return completion(text, [token(text, 1.0)])

        server.reply = reply
        requests = [MllmRequest(name) for name in "abcd"]
        found = endpoint(server, concurrency=3).generate(requests, 4, num_candidates=2, temperature=0.8, seed=5)
        assert [[one.text for one in row] for row in found] == [[f"{name}5", f"{name}6"] for name in "abcd"]
        assert 1 < server.most_at_once <= 3


class TestFailure:
    def test_a_busy_server_is_asked_again(self, server: Server) -> None:
        server.reply = lambda number, body: (429, {}, b"slow down") if number < 2 else SCORE
        ((answer,),) = endpoint(server).generate([MllmRequest("Score?")], 8)
        assert answer.text == "-0.4"
        assert len(server.bodies) == 3

    def test_its_retry_after_is_followed(self, server: Server) -> None:
        server.reply = lambda number, body: (503, {"Retry-After": "1"}, b"") if number < 1 else SCORE
        begin = time.monotonic()
        endpoint(server).generate([MllmRequest("Score?")], 8)
        assert time.monotonic() - begin >= 1

    def test_waits_grow_and_vary(self, server: Server) -> None:
        waits = [endpoint(server, backoff=1.0)._wait(TimeoutError(), attempt) for attempt in (0, 3, 20)]
        assert 0.5 <= waits[0] <= 1.5
        assert 4 <= waits[1] <= 12
        assert waits[2] == 60
        assert len({endpoint(server, backoff=1.0)._wait(TimeoutError(), 0) for _ in range(5)}) > 1

    def test_a_server_that_stays_busy_is_given_up(self, server: Server) -> None:
        server.reply = lambda number, body: (500, {}, b"out of memory")
        with pytest.raises(ConnectionError, match="refused with status 500, asked 3 times: out of memory"):
            endpoint(server).generate([MllmRequest("Score?")], 8)
        assert len(server.bodies) == 3

    def test_a_refusal_is_final(self, server: Server) -> None:
        server.reply = lambda number, body: (400, {}, b"audio is not supported")
        with pytest.raises(ConnectionError, match="status 400, asked once: audio is not supported"):
            endpoint(server).generate([MllmRequest("Score?")], 8)

    def test_an_answer_that_does_not_come_is_a_time_out(self, server: Server) -> None:
        def reply(number: int, body: dict[str, Any]) -> Reply:
            time.sleep(1.0)
            return SCORE

        server.reply = reply
        with pytest.raises(TimeoutError, match=r"did not answer within 0.2 s, asked 2 times"):
            endpoint(server, timeout=0.2, retries=1).generate([MllmRequest("Score?")], 8)

    def test_a_server_that_is_not_there(self) -> None:
        nobody = EndpointMllm("http://127.0.0.1:9/v1", token="x", retries=1, backoff=0.01)
        with pytest.raises(ConnectionError, match="cannot be reached, tried 2 times .*check the address"):
            nobody.generate([MllmRequest("Score?")], 8)

    def test_an_answer_without_logprobs_says_what_to_do(self, server: Server) -> None:
        server.reply = lambda number, body: completion("-0.4", None)
        with pytest.raises(ValueError, match="gave no log-probabilities.*--max-logprobs"):
            endpoint(server).generate([MllmRequest("Score?")], 8)
        assert len(server.bodies) == 1
        server.reply = lambda number, body: completion(
            "-0.4", [{"token": "-0.4", "logprob": -1.0, "top_logprobs": []}]
        )
        with pytest.raises(ValueError, match="must support top_logprobs"):
            endpoint(server).generate([MllmRequest("Score?")], 8)

    @pytest.mark.parametrize(
        "content",
        [
            b"<html>It works!</html>",
            b"{}",
            b"[]",
            b'{"choices": []}',
            b'{"choices": [{"message": {"content": "1"}, "logprobs": {"content": [{"token": "1"}]}}]}',
            b'{"choices": [{"message": {"content": "1"}, "logprobs": {"content": [{"token": "1", "logprob": "x"}]}}]}',
        ],
    )
    def test_garbage_is_named_as_such(self, server: Server, content: bytes) -> None:
        server.reply = lambda number, body: (200, {}, content)
        with pytest.raises(ValueError, match="sent no chat completion"):
            endpoint(server).generate([MllmRequest("Score?")], 8)
        assert len(server.bodies) == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            {"logprob": 742.0},
            {"logprob": "NaN"},
            {"logprob": True},
            {"logprob": None},
            {"token": 7},
            {"top_logprobs": [{"token": "a", "logprob": 742.0}]},
            {"top_logprobs": [{"token": text, "logprob": 0.0} for text in "abc"]},  # probabilities that add up to 3
            {"top_logprobs": 3},
            {"top_logprobs": ["a"]},
        ],
    )
    def test_numbers_that_cannot_be_are_refused(self, server: Server, wrong: dict[str, Any]) -> None:
        server.reply = lambda number, body: completion("-0.4", [{**token("-0.4", 0.9, 0.1), **wrong}])
        with pytest.raises(ValueError, match="sent no chat completion that can be read"):
            endpoint(server).generate([MllmRequest("Score?")], 8)

    @pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999", b"[" * 100_000])
    def test_what_is_no_json_is_refused(self, server: Server, number: bytes) -> None:
        status, headers, content = completion("-0.4", [token("-0.4", 0.9, 0.1)])
        server.reply = lambda _, body: (status, headers, content.replace(b"-0.10536051565782628", number))
        with pytest.raises(ValueError, match="sent no chat completion that can be read"):
            endpoint(server).generate([MllmRequest("Score?")], 8)

    def test_what_rounding_puts_above_0_counts_as_certain(self, server: Server) -> None:
        rounded = {"token": "1", "logprob": 1e-3, "top_logprobs": [{"token": "1", "logprob": 1e-3}]}
        server.reply = lambda number, body: completion("1", [rounded])
        ((answer,),) = endpoint(server).generate([MllmRequest("Score?")], 8)
        assert (answer.token_logprobs, answer.token_entropies) == ((0.0,), (0.0,))

    def test_an_answer_without_end_is_not_read_to_it(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(msa_mllm_endpoint, "LARGEST_ANSWER", 2**20)
        server.reply = lambda number, body: (200, {}, b" " * 2**22)
        with pytest.raises(ValueError, match="longer than 1 MiB"):
            endpoint(server).generate([MllmRequest("Score?")], 8)

    def test_nobody_is_followed_to_another_place(self, server: Server) -> None:
        elsewhere = Server()
        server.reply = lambda number, body: (307, {"Location": f"{elsewhere.url}/chat/completions"}, b"")
        with pytest.raises(ConnectionError, match=rf"sends us on to {elsewhere.url}.* \(status 307\)"):
            endpoint(server).generate([MllmRequest("Score?")], 8)
        elsewhere.http.shutdown()
        elsewhere.http.server_close()
        assert (len(server.bodies), len(elsewhere.bodies)) == (1, 0)

    @pytest.mark.parametrize("slow", ["headers", "body"])
    def test_a_server_that_drips_is_given_up(self, slow: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def drip() -> None:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if slow == "body":
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    for _ in range(100):
                        connection.sendall(b"H" if slow == "headers" else b" ")
                        time.sleep(0.05)

            threading.Thread(target=drip, daemon=True).start()
            url, begin = f"http://127.0.0.1:{listener.getsockname()[1]}/v1", time.monotonic()
            with pytest.raises(TimeoutError, match=r"within 0.3 s, asked once"):
                EndpointMllm(url, timeout=0.3, retries=0).generate([MllmRequest("Score?")], 8)
            assert time.monotonic() - begin < 2

    def test_an_empty_answer_is_an_answer(self, server: Server) -> None:
        server.reply = lambda number, body: completion("", [token("<|im_end|>", 1.0)])
        ((answer,),) = endpoint(server).generate([MllmRequest("Score?")], 8)
        assert answer.text == ""
        assert label_entropy(answer) == math.inf

    def test_embeddings_are_refused_in_a_sentence(self, server: Server) -> None:
        with pytest.raises(ValueError, match="gives no hidden states"):
            endpoint(server).embed([MllmRequest("x")])

    def test_settings_without_sense_are_refused(self) -> None:
        with pytest.raises(ValueError, match="timeout is 0"):
            EndpointMllm("http://127.0.0.1:9", timeout=0)


class TestTrust:
    """Who gets what: tokens, addresses, and what comes back in messages."""

    def test_a_url_gets_no_token_of_the_hub(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
        endpoint(server, token=None).generate([MllmRequest("Score?")], 8)
        assert "authorization" not in server.headers[0]
        assert "hf_of_the_user" not in str(server.headers) + str(server.bodies)

    def test_the_hub_gets_it(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
        monkeypatch.setattr(msa_mllm_endpoint, "HUB_ROUTER", server.url)
        EndpointMllm("org/omni").generate([MllmRequest("Score?")], 8)
        assert server.headers[0]["authorization"] == "Bearer hf_of_the_user"
        assert server.bodies[0]["model"] == "org/omni"
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(msa_mllm_endpoint, "get_token", lambda: None)
        with pytest.raises(ValueError, match="There is no Hub token"):
            EndpointMllm("org/omni").generate([MllmRequest("Score?")], 8)

    def test_a_token_is_in_no_message(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
        for status in (400, 302, 200):
            echoed = f"you sent {server.headers[-1:]} hf_of_the_user secret \x1b[2J"
            server.reply = lambda number, body, status=status, echoed=echoed: (
                status,
                {"Location": "https://there/?token=secret"},
                echoed.encode(),
            )
            with pytest.raises((ConnectionError, ValueError)) as caught:
                endpoint(server).generate([MllmRequest("Score?")], 8)
            assert not {"secret", "hf_of_the_user", "\x1b"} & {*str(caught.value).replace("=", " ").split(" ")}
            assert caught.value.__cause__ is None and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("address", "sentence"),
        [
            ("http://10.0.0.5:8000/v1", "in the clear.*https://.*tunnel"),
            ("http://localhost.example.org/v1", "in the clear"),
            ("HTTP://example.org/v1", "in the clear"),
            ("ftp://example.org/v1", "no address of a server"),
            ("https://", "no address of a server"),
            ("https://host:port/v1", "no address of a server"),
            ("https://me:hunter2@example.org/v1", "holds a password"),  # pragma: allowlist secret
            ("https://example.org/v1?key=hunter2", "holds a password, a query"),
        ],
    )
    def test_addresses_that_are_not_safe_are_refused(self, address: str, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence) as caught:
            EndpointMllm(address)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        "address",
        ["https://example.org/v1", "http://localhost:8000/v1", "http://127.9.9.9/v1", "http://[::1]:8000/v1"],
    )
    def test_addresses_that_are_taken(self, address: str) -> None:
        assert EndpointMllm(address).name == address

    def test_what_a_configuration_names_is_asked_with_the_caller_s_word_only(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(msa_mllm_endpoint, "_allowed", set())
        monkeypatch.delenv("HF_MSA_ENDPOINT", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
        for other in (None, "", "https://other/v1", "1"):
            if other is not None:
                monkeypatch.setenv("HF_MSA_ENDPOINT", other)
            with pytest.raises(ValueError, match=r"has not been allowed; .*HF_MSA_ENDPOINT to this .*route=\"fast\""):
                allowed_endpoint(server.url, "expert", 'route="fast"')
        assert not server.bodies
        monkeypatch.setenv("HF_MSA_ENDPOINT", server.url)
        monkeypatch.setenv("HF_MSA_ENDPOINT_TOKEN", "for_the_server")
        allowed_endpoint(server.url, "expert", "").generate([MllmRequest("Score?")], 8)
        assert server.headers[0]["authorization"] == "Bearer for_the_server"
        monkeypatch.delenv("HF_MSA_ENDPOINT")
        allow_endpoint(server.url)
        assert allowed_endpoint(server.url, "expert", "").name == server.url
