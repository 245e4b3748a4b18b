"""The endpoint back end against a loopback server: what is sent, what is read, and every way in which it can fail."""

import base64
import contextlib
import dataclasses
import email.utils
import io
import json
import math
import re
import socket
import threading
import time
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_msa.models import msa_mllm_endpoint, msa_mllm_server
from hf_msa.models.configuration_msa import ServerSettings
from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_mllm_answers import label_entropy, label_entropy_bounds, parse_score
from hf_msa.models.msa_mllm_completion import entropy_bounds, placed, read_completion
from hf_msa.models.msa_mllm_endpoint import EndpointMllm, allow_endpoint, allowed_endpoint
from loopback_mllm_server import Reply, Server, completion, token
from tiny_mllm import tiny_audio, tiny_frames


def settings(**changes: Any) -> ServerSettings:
    """The configurations' defaults, and changes."""
    defaults = ServerSettings(None, None, top_logprobs=20, timeout=20.0, retries=0, concurrency=2)
    return dataclasses.replace(defaults, **changes)


SCORE = completion("-0.4", [token("-0", 0.5, 0.5), token(".4", 0.9, 0.1), token("<|im_end|>", 1.0)])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.reply = lambda number, body: SCORE
    yield server
    server.close()


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

    def test_a_list_of_which_tokens_fell_out_bounds_less(self) -> None:
        """Where parts of characters have one name, one of them is listed; others may be more probable than what is."""
        listed = [{"token": text, "logprob": math.log(p), "bytes": None} for text, p in (("", 0.4), ("a", 0.1))]
        known = -0.4 * math.log(0.4) - 0.1 * math.log(0.1)
        for text, low in (("", known - 0.5 * math.log(0.5)), ("b", known - 5 * 0.1 * math.log(0.1))):
            tokens = [{"token": "a", "logprob": -1.0, "top_logprobs": [{**listed[0], "token": text}, listed[1]]}]
            ((found, high),) = read_completion(completion("a", tokens)[2], 102).bounds
            assert (found, high) == pytest.approx((low, known - 0.5 * math.log(0.5 / 100)))

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

    @pytest.mark.parametrize(
        ("usage", "known"),
        [({"prompt_tokens": 41}, 41), ({"prompt_tokens": -1}, None), ({"prompt_tokens": "many"}, None), ([], None)],
    )
    def test_counts_the_tokens_of_the_question_as_the_server_does(self, usage: Any, known: int | None) -> None:
        content = json.loads(completion("a", [token("a", 0.5)])[2])
        assert read_completion(json.dumps(content).encode(), 102).answer().prompt_tokens is None
        content["usage"] = usage
        assert read_completion(json.dumps(content).encode(), 102).answer().prompt_tokens == known

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
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            assert (kind, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", frame.shape[1::-1])

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

    def test_media_are_encoded_where_they_are_sent(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        threads: list[str] = []
        encode = msa_mllm_endpoint._messages
        monkeypatch.setattr(
            msa_mllm_endpoint,
            "_messages",
            lambda request: (threads.append(threading.current_thread().name), encode(request))[1],
        )
        requests = [MllmRequest(str(number), frames=tiny_frames(count=1)) for number in range(6)]
        endpoint(server, concurrency=2).generate(requests, 8, num_candidates=3, temperature=1.0)
        assert len(threads) == 6 and threading.current_thread().name not in threads  # once for all candidates

    def test_a_picture_is_sent_as_it_looks(self, server: Server) -> None:
        across = np.linspace(0, 255, 64, dtype=np.uint8)
        frame = np.stack(
            [np.tile(across, (48, 1)), np.tile(across[::-1], (48, 1)), np.full((48, 64), 90, np.uint8)], -1
        )
        endpoint(server).generate([MllmRequest("Score?", frames=frame[None])], 8)
        data = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
        assert np.abs(found - frame).mean() < 3


class TestServedModel:
    def test_the_only_one_is_asked(self, server: Server) -> None:
        server.models = ["org/omni"]
        mllm = endpoint(server)
        mllm.generate([MllmRequest("a"), MllmRequest("b")], 8)
        assert [body["model"] for body in server.bodies] == ["org/omni"] * 2 and server.lists == 1
        assert mllm.identity["served_model"] == "org/omni" and mllm.name == server.url
        assert server.headers[0]["authorization"] == "Bearer secret"

    def test_of_several_one_has_to_be_named(self, server: Server) -> None:
        server.models = ["org/omni", "lora-1"]
        with pytest.raises(
            ValueError, match=r"several models \('org/omni', 'lora-1'\); say .*expert_served_model"
        ) as error:
            endpoint(server).generate([MllmRequest("Score?")], 8)
        assert not server.bodies and "\n" not in str(error.value)
        mllm = endpoint(server, model="lora-1")
        mllm.generate([MllmRequest("Score?")], 8)
        assert server.bodies[0]["model"] == "lora-1" and server.lists == 1 and mllm.name == f"{server.url}#lora-1"

    def test_a_server_without_a_list_is_asked_without_a_name(self, server: Server) -> None:
        mllm = endpoint(server)
        mllm.generate([MllmRequest("Score?")], 8)
        assert "model" not in server.bodies[0] and mllm.identity["served_model"] is None

    def test_what_answers_depend_on_tells_models_apart(self, server: Server) -> None:
        named = [endpoint(server, model=name).identity for name in ("a", "b")]
        assert named[0] != named[1] != endpoint(server, model="b", top_logprobs=5).identity


class TestTopLogprobs:
    """How many tokens a server lists: as many as it is asked for, or as it allows."""

    @pytest.mark.parametrize(
        ("said", "allowed"),
        [
            ("Requested sample logprobs of 20, which is greater than max allowed: 7", 7),
            ("Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 20", 5),
            ("[{'type': 'less_than_equal', 'loc': ('body', 'top_logprobs'), 'ctx': {'le': 8}}] errors/2.11/v/le", 8),
            ("top_logprobs is too large", 5),
        ],
    )
    def test_fewer_are_asked_for_where_a_server_allows_fewer(
        self, server: Server, said: str, allowed: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.reply = lambda number, body: SCORE if body["top_logprobs"] <= allowed else (400, {}, said.encode())
        mllm = endpoint(server, concurrency=3, retries=0)
        mllm.generate([MllmRequest(str(number)) for number in range(6)], 8)
        asked = [body["top_logprobs"] for body in server.bodies]
        assert asked[-1] == allowed and asked.count(allowed) == 6 and 20 in asked
        server.bodies.clear()
        mllm.generate([MllmRequest("again")], 8)
        assert [body["top_logprobs"] for body in server.bodies] == [allowed]
        assert f"no more than {allowed} tokens" in caplog.text

    def test_a_server_that_allows_none_is_refused(self, server: Server) -> None:
        server.reply = lambda number, body: (400, {}, b"logprobs are not supported")
        with pytest.raises(ConnectionError, match="status 400, asked once: logprobs are not supported"):
            endpoint(server).generate([MllmRequest("Score?")], 8)
        assert [body["top_logprobs"] for body in server.bodies] == [20, 5]


class TestPlainAnswers:
    """Answers are the most probable tokens, whatever a server does to them unless it is told not to."""

    def test_penalties_are_turned_off(self, server: Server) -> None:
        endpoint(server).generate([MllmRequest("Score?")], 8)
        endpoint(server).generate([MllmRequest("Score?")], 8, temperature=0.7, top_p=0.9)
        plain = {"repetition_penalty": 1.0, "repeat_penalty": 1.0, "min_p": 0.0}
        assert [{name: body[name] for name in plain} for body in server.bodies] == [plain, plain]
        assert [body["top_p"] for body in server.bodies] == [1.0, 0.9]

    def test_a_field_that_a_server_does_not_take_is_left_out(self, server: Server) -> None:
        def reply(number: int, body: dict[str, Any]) -> Reply:
            for name in ("repeat_penalty", "min_p"):
                if name in body:
                    return 400, {}, f"Unrecognized request argument supplied: {name}".encode()
            return (422, {}, b"`top_p` must be > 0.0 and < 1.0") if body.get("top_p") == 1 else SCORE

        server.reply = reply
        mllm = endpoint(server)
        mllm.generate([MllmRequest("Score?")], 8)
        mllm.generate([MllmRequest("Score?")], 8)
        assert len(server.bodies) == 5
        assert not {"repeat_penalty", "min_p", "top_p"} & {*server.bodies[-1]}
        assert server.bodies[-1]["repetition_penalty"] == 1.0 and server.bodies[-1]["top_logprobs"] == 20
        # What the caller asked for is not left out.
        with pytest.raises(ConnectionError, match="`top_p` must be"):
            mllm.generate([MllmRequest("Score?")], 8, temperature=1.0, top_p=1.0)


def spell(*pieces: str | bytes) -> list[dict[str, Any]]:
    """Certain tokens with these bytes; the text of one that is no text is what servers show for it."""
    tokens = []
    for piece in pieces:
        given = piece.encode() if isinstance(piece, str) else piece
        text = given.decode(errors="replace")
        one = {"token": text, "bytes": [*given], "logprob": 0.0}
        tokens.append({**one, "top_logprobs": [one]})
    return tokens


class TestTokens:
    """Where tokens stand in the answer."""

    def test_a_character_is_added_by_the_last_of_its_tokens(self, server: Server) -> None:
        tokens = spell(b"\xe8\xb4", b"\x9f", "0", ".6", "<|im_end|>")
        server.reply = lambda number, body: completion("负0.6", tokens)
        ((answer,),) = endpoint(server).generate([MllmRequest("Score?")], 8)
        assert answer.token_texts == ("", "负", "0", ".6", "")

    @pytest.mark.parametrize("part", ["", "\ufffd"])
    def test_parts_that_a_server_cannot_spell_do_not_lose_what_follows(self, part: str) -> None:
        pieces = [one.encode() for one in ("I: ", part, part, "0", ".6", "</s>")]
        assert placed(pieces, "I: 负0.6") == ["I: ", "", "负", "0", ".6", ""]

    def test_an_answer_of_such_parts_alone_is_theirs(self) -> None:
        assert placed([b"", b"", b"", b"", "\ufffd".encode()], "意想走向") == ["", "", "", "", "意想走向"]
        assert placed([b"1", b"", b"<s>"], "1负") == ["1", "负", ""]
        assert placed([b"", b"2"], "much more than a character 2") == ["", ""]

    def test_a_token_that_is_not_in_the_text_is_not_looked_for_further_on(self) -> None:
        assert placed([b"0", b"<pad>", b".6", b"6"], "0.66") == ["0", "", ".6", "6"]
        assert placed([b"<s>", b"6", b" 6"], "0 6") == ["", "", ""]

    def test_parts_of_characters_that_look_alike_are_not_one_token(self) -> None:
        listed = [{"token": "\ufffd", "bytes": [200 + n], "logprob": math.log(p)} for n, p in enumerate((0.5, 0.3))]
        tokens = [{"token": "1", "logprob": math.log(0.5), "top_logprobs": [*listed, listed[0]]}]
        (bounds,) = read_completion(completion("1", tokens)[2], 102).bounds
        assert bounds == pytest.approx(entropy_bounds([math.log(0.5), math.log(0.3)], 102))

    def test_tokens_of_another_text_are_refused(self, server: Server) -> None:
        server.reply = lambda number, body: completion("-0.4", [token("tok", 1.0)])
        with pytest.raises(ValueError, match="tokens that do not make up its answer '-0.4'"):
            endpoint(server).generate([MllmRequest("Score?")], 8)

    @pytest.mark.parametrize("wrong", [10**9, "ab", [300], [1.5]])
    def test_bytes_that_cannot_be_are_refused(self, server: Server, wrong: Any) -> None:
        server.reply = lambda number, body: completion("1", [{**token("1", 1.0), "bytes": wrong}])
        with pytest.raises(ValueError, match="no chat completion that can be read"):
            endpoint(server).generate([MllmRequest("Score?")], 8)


class TestThoughts:
    """What a model thinks before it answers is no answer."""

    def ask(self, server: Server, content: str | None, tokens: list[dict[str, Any]], **beside: Any) -> Any:
        _, _, body = completion("", tokens)
        reply = json.loads(body)
        reply["choices"][0]["message"] |= {"content": content, **beside}
        server.reply = lambda number, body: (200, {}, json.dumps(reply).encode())
        ((answer,),) = endpoint(server).generate([MllmRequest("Score?")], 99)
        return answer

    def test_they_are_cut_out_of_the_text_with_their_tokens(self, server: Server) -> None:
        unsure = [token(" 2.0", 0.5, 0.5), token("?", 0.5, 0.5)]
        tokens = [token("<think>", 1.0), *unsure, token("</think>", 1.0), token("\n\n", 1.0), token("-1", 0.9, 0.1)]
        for opened in (True, False):  # the chat template may have opened them
            text = f"{'<think>' if opened else ''} 2.0?</think>\n\n-1"
            answer = self.ask(server, text, tokens[not opened :])
            assert (answer.text, answer.token_texts) == ("-1", ("", "-1"))
            assert answer.logprob == pytest.approx(math.log(0.9))
            assert label_entropy(answer) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))

    @pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
    def test_they_are_left_out_where_the_server_keeps_them_apart(self, server: Server, key: str) -> None:
        answer = self.ask(server, "-1", [token("maybe -1", 0.5, 0.5), *spell("</think>", "-1")], **{key: "maybe -1"})
        assert (answer.text, answer.token_texts, label_entropy(answer)) == ("-1", ("-1",), 0.0)
        # Another mark than ours, or tokens of the answer alone.
        answer = self.ask(server, "-1", [token("so -1", 0.5, 0.5), *spell("<|final|>", "-1")], **{key: "so -1"})
        assert (answer.token_texts, label_entropy(answer)) == (("-1",), 0.0)
        assert self.ask(server, "-1", spell("-1"), **{key: "so"}).token_texts == ("-1",)

    @pytest.mark.parametrize(("content", "beside"), [("<think>2.0 or", {}), (None, {"reasoning_content": "2.0 or"})])
    def test_thoughts_that_do_not_end_are_no_answer(
        self, server: Server, content: str | None, beside: dict[str, str]
    ) -> None:
        answer = self.ask(server, content, [token("2.0", 0.9, 0.1), token(" or", 0.9, 0.1)], **beside)
        assert (answer.text, answer.token_texts, label_entropy(answer)) == ("", (), math.inf)


class TestOnlyNumbers:
    """Answers that are held to be a number."""

    def test_each_way_is_tried_until_a_server_follows_one(self, server: Server) -> None:
        def reply(number: int, body: dict[str, Any]) -> Reply:
            if "structured_outputs" in body:  # passed over
                return completion("Surely 2", [token("Surely 2", 1.0)])
            return SCORE if "response_format" in body else (422, {}, b"guided_regex: unknown field")

        server.reply = reply
        mllm = endpoint(server)
        ((answer,),) = mllm.generate([MllmRequest("Score?")], 8, only_number=True)
        assert answer.text == "-0.4" and len(server.bodies) == 3
        assert server.bodies[0]["structured_outputs"]["regex"] == server.bodies[1]["guided_regex"]
        assert server.bodies[2]["response_format"] == {"type": "regex", "value": server.bodies[1]["guided_regex"]}
        mllm.generate([MllmRequest("Score?")], 8, only_number=True)
        assert len(server.bodies) == 4  # remembered
        server.reply = lambda number, body: SCORE
        mllm.generate([MllmRequest("Score?")], 8)
        assert not {"structured_outputs", "grammar", "guided_regex", "response_format"} & {*server.bodies[4]}

    def test_a_server_that_follows_none_is_refused(self, server: Server) -> None:
        server.reply = lambda number, body: completion("Surely 2", [token("Surely 2", 1.0)])
        with pytest.raises(ValueError, match="cannot be held to the wanted form of answers"):
            endpoint(server).generate([MllmRequest("Score?")], 8, only_number=True)

    def test_another_failure_stays_what_it_is(self, server: Server) -> None:
        server.reply = lambda number, body: (401, {}, b"who are you?")
        with pytest.raises(ConnectionError, match="status 401, asked once: who are you"):
            endpoint(server).generate([MllmRequest("Score?")], 8, only_number=True)

    def test_what_is_asked_for_is_every_number_of_the_range(self, server: Server) -> None:
        endpoint(server).generate([MllmRequest("Score?")], 8, only_number=(-1.0, 1.0))
        (body,) = server.bodies
        regex = re.compile(body["structured_outputs"]["regex"])
        tenths = [f"{number / 10:.1f}" for number in range(-10, 11)]
        assert all(regex.fullmatch(number) for number in tenths)
        assert not any(map(regex.fullmatch, ("", "1.1", "-", "0", "-0.0", "+1.0", "0x4", "1.0 ", "-0.45")))
        with pytest.raises(ValueError, match="may have 3 tokens"):
            endpoint(server).generate([MllmRequest("Score?")], 3, only_number=True)
        assert body["grammar"] == "root ::= " + " | ".join(f'"{number}"' for number in tenths)

    def test_an_answer_that_was_cut_is_marked(self, server: Server) -> None:
        status, headers, content = SCORE
        cut = content.replace(b'"finish_reason": "stop"', b'"finish_reason": "length"')
        for given, finished in ((content, True), (cut, False)):
            server.reply = lambda number, body, given=given: (status, headers, given)
            ((answer,),) = endpoint(server).generate([MllmRequest("Score?")], 8)
            assert answer.finished == finished


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

    def test_its_retry_after_may_be_a_date(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[float] = []
        monkeypatch.setattr(msa_mllm_server.time, "sleep", waits.append)
        now = time.time()
        for asked in (
            email.utils.formatdate(now + 30, usegmt=True),
            email.utils.formatdate(now - 30),
            "1.5",
            "soon",
            "",
        ):
            server.bodies.clear()
            server.reply = lambda number, body, asked=asked: (
                (429, {"Retry-After": asked}, b"") if not number else SCORE
            )
            endpoint(server).generate([MllmRequest("Score?")], 8)
        assert waits[0] == pytest.approx(30, abs=5) and waits[2] == 1.5
        assert max(waits[1], *waits[3:]) < 0.1

    def test_waits_grow_and_vary(self, server: Server) -> None:
        waits = [endpoint(server, backoff=1.0)._server._wait(TimeoutError(), attempt) for attempt in (0, 3, 20)]
        assert 0.5 <= waits[0] <= 1.5
        assert 4 <= waits[1] <= 12
        assert waits[2] == 60
        assert len({endpoint(server, backoff=1.0)._server._wait(TimeoutError(), 0) for _ in range(5)}) > 1

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
        monkeypatch.setattr(msa_mllm_server, "LARGEST_ANSWER", 2**20)
        server.reply = lambda number, body: (200, {}, b" " * 2**22)
        with pytest.raises(ValueError, match="longer than 1 MiB"):
            endpoint(server).generate([MllmRequest("Score?")], 8)

    def test_nobody_is_followed_to_another_place(self, server: Server) -> None:
        elsewhere = Server()
        server.reply = lambda number, body: (307, {"Location": f"{elsewhere.url}/chat/completions"}, b"")
        with pytest.raises(ConnectionError, match=rf"sends us on to {elsewhere.url}.* \(status 307\)"):
            endpoint(server).generate([MllmRequest("Score?")], 8)
        elsewhere.close()
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
        assert len(server.headers) == 2 and not any("authorization" in headers for headers in server.headers)
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

    def test_a_key_comes_from_the_variable_that_the_caller_named(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(msa_mllm_endpoint, "_allowed", {})
        monkeypatch.delenv("HF_MSA_ENDPOINT_TOKEN", raising=False)
        monkeypatch.setenv("SERVER_KEY", "for_the_server")
        named = settings(key_variable="SERVER_KEY")
        # The server is allowed, but the checkpoint alone says which variable it is sent.
        monkeypatch.setenv("HF_MSA_ENDPOINT", server.url)
        with pytest.raises(
            ValueError, match="wants the content of the environment variable SERVER_KEY sent to its expert"
        ):
            allowed_endpoint(server.url, "expert", "", named)
        monkeypatch.setenv("HF_MSA_ENDPOINT_TOKEN", "given_by_hand")
        allowed_endpoint(server.url, "expert", "", named).generate([MllmRequest("Score?")], 8)
        allow_endpoint(server.url, "SERVER_KEY")
        allowed_endpoint(server.url, "expert", "", named).generate([MllmRequest("Score?")], 8)
        sent = [headers["authorization"] for headers in server.headers]
        assert sent == [*["Bearer given_by_hand"] * 2, *["Bearer for_the_server"] * 2]  # the list of models, an answer
        monkeypatch.setenv("SERVER_KEY", "hf_of_the_user")
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
        with pytest.raises(
            ValueError, match="SERVER_KEY holds the token of the Hub login, which goes to the Hub only"
        ):
            allowed_endpoint(server.url, "expert", "", named)
        monkeypatch.delenv("SERVER_KEY")
        with pytest.raises(ValueError, match="key is to be in the environment variable SERVER_KEY, which is not set"):
            allowed_endpoint(server.url, "expert", "", named)

    def test_settings_reach_the_server(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(msa_mllm_endpoint, "_allowed", {server.url: None})
        mllm = allowed_endpoint(
            server.url, "expert", "", settings(served_model="omni", top_logprobs=3, concurrency=1, timeout=9.0)
        )
        mllm.generate([MllmRequest(name) for name in "abc"], 8)
        assert {(body["model"], body["top_logprobs"]) for body in server.bodies} == {("omni", 3)}
        assert (server.most_at_once, mllm._limits["timeout"], mllm._limits["retries"]) == (1, 9.0, 0)

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
        monkeypatch.setattr(msa_mllm_endpoint, "_allowed", {})
        monkeypatch.delenv("HF_MSA_ENDPOINT", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
        for other in (None, "", "https://other/v1", "1"):
            if other is not None:
                monkeypatch.setenv("HF_MSA_ENDPOINT", other)
            with pytest.raises(ValueError, match=r"has not been allowed; .*HF_MSA_ENDPOINT to this .*route=\"fast\""):
                allowed_endpoint(server.url, "expert", 'route="fast"', settings())
        assert not server.bodies
        monkeypatch.setenv("HF_MSA_ENDPOINT", server.url)
        monkeypatch.setenv("HF_MSA_ENDPOINT_TOKEN", "for_the_server")
        allowed_endpoint(server.url, "expert", "", settings()).generate([MllmRequest("Score?")], 8)
        assert {headers["authorization"] for headers in server.headers} == {"Bearer for_the_server"}
        monkeypatch.delenv("HF_MSA_ENDPOINT")
        allow_endpoint(server.url)
        assert allowed_endpoint(server.url, "expert", "", settings()).name == server.url
