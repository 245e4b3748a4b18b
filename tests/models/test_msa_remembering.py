"""Nothing is asked twice, one failing request costs itself alone, and a model that is gone ends the work."""

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_msa.models import msa_remembering
from hf_msa.models.msa_answer_store import ANSWERS_FILE, AnswerStore
from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_remembering import GivenAnswer, RememberingMllm
from stub_expert import Says, StubExpert


class Fragile(StubExpert):
    """Fails at requests that hold "broken", and at all once it is gone."""

    def __init__(self, gone_after: int = 10**9, script: Callable[[MllmRequest], Says] = lambda _: Says(1.0)) -> None:
        super().__init__(script)
        self.gone_after = gone_after

    def generate(self, requests: Sequence[MllmRequest], *args: Any, **kwargs: Any) -> Any:
        """Answer, or fail."""
        if self.calls >= self.gone_after:
            raise ConnectionError("The server is gone.")
        if any("broken" in request.prompt for request in requests):
            raise ConnectionError("The server refused with status 400.")
        return super().generate(requests, *args, **kwargs)

    @property
    def questions(self) -> list[str]:
        """What was asked and answered, without the plain questions that only tell whether anybody is there."""
        prompts = [request.prompt for asked in self.asked for request in asked]
        return [prompt for prompt in prompts if "Reply with" not in prompt]


def requests_of(*prompts: str) -> list[MllmRequest]:
    return [MllmRequest(prompt) for prompt in prompts]


def texts(given: Sequence[GivenAnswer]) -> list[str | None]:
    return [None if one.answer is None else one.answer.text for one in given]


def test_what_is_known_is_not_asked_again_by_anybody(tmp_path: Path) -> None:
    expert = StubExpert(lambda request: Says(request.prompt))
    first = RememberingMllm(expert, AnswerStore(tmp_path)).ask(requests_of("a", "b", "a"), 16)
    assert texts(first) == ["a", "b", "a"] and [len(asked) for asked in expert.asked] == [2]
    again = RememberingMllm(StubExpert(lambda _: Says("no")), AnswerStore(tmp_path))
    known = [dataclasses.replace(one, is_remembered=True) for one in (first[1], first[0])]
    assert again.ask(requests_of("b", "a"), 16) == known, "to the last digit, time included"
    assert texts(again.ask(requests_of("c"), 16)) == ["no"]


@pytest.mark.parametrize("text", ["a\u2028b", "c\u0085d\u000be", "f\ng", "\ud83d lone", ""])
def test_any_text_is_kept_as_it_is(text: str, tmp_path: Path) -> None:
    for _ in range(2):
        asker = RememberingMllm(StubExpert(lambda _: Says(text)), AnswerStore(tmp_path))
        assert texts(asker.ask(requests_of(text + "?"), 16)) == [text]


def test_another_model_adapter_or_setting_is_another_answer(tmp_path: Path) -> None:
    def asks(identity: dict[str, str | None], max_new_tokens: int = 16, **options: Any) -> int:
        expert = StubExpert(lambda _: Says(1.0))
        expert.identity = identity  # type: ignore[attr-defined]  # as local models have one
        RememberingMllm(expert, AnswerStore(tmp_path)).ask(requests_of("a"), max_new_tokens, **options)
        return expert.calls

    base: dict[str, str | None] = {"model": "m", "adapter": "1"}
    assert asks(base) == 1 and asks(base) == 0
    others = [
        asks({**base, "adapter": "2"}),
        asks({**base, "model": "n"}),
        asks(base, 8),
        asks(base, only_number=True),
    ]
    assert others == [1, 1, 1, 1]


def test_the_words_lie_there_for_reading(tmp_path: Path) -> None:
    RememberingMllm(StubExpert(lambda _: Says("good: 1.5")), AnswerStore(tmp_path)).ask(requests_of("How?"), 16)
    connection = sqlite3.connect(tmp_path / ANSWERS_FILE)
    ((value,),) = connection.execute("SELECT CAST(value AS TEXT) FROM answers").fetchall()
    connection.close()
    kept = json.loads(value)
    assert (kept["model"], kept["question"], kept["text"]) == ("stub", "How?", "good: 1.5")


def test_of_questions_nothing_is_kept_without_a_folder() -> None:
    store = AnswerStore()
    RememberingMllm(StubExpert(lambda _: Says(1.5)), store).ask(requests_of("My secret"), 16)
    ((value,),) = store._connection().execute("SELECT value FROM answers").fetchall()
    assert b"1.5" in value and b"secret" not in value


def test_what_another_version_kept_in_another_form_is_asked_again(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    RememberingMllm(StubExpert(lambda _: Says(1.0)), store).ask(requests_of("a"), 16)
    connection = sqlite3.connect(tmp_path / ANSWERS_FILE)
    ((key,),) = connection.execute("SELECT key FROM answers").fetchall()
    connection.execute("DELETE FROM answers")
    connection.commit()
    connection.close()
    store.write({key: b'{"text": "9.0"}'})
    assert texts(RememberingMllm(StubExpert(lambda _: Says(2.0)), store).ask(requests_of("a"), 16)) == ["2.0"]


def test_one_failing_request_costs_itself_alone(caplog: pytest.LogCaptureFixture) -> None:
    expert = Fragile()
    asker = RememberingMllm(expert, AnswerStore())
    prompts = [*"abcdefg", "broken", *"hij"]
    given = asker.ask(requests_of(*prompts), 16)
    assert texts(given) == ["1.0"] * 7 + [None] + ["1.0"] * 3
    assert sorted(expert.questions) == sorted("abcdefghij")
    assert [record.getMessage() for record in caplog.records] == [
        "The language model gave no answer to a question, which counts as unreadable: The server refused with status 400."
    ]
    expert.asked.clear()
    assert texts(asker.ask(requests_of("a", "broken"), 16)) == ["1.0", None]
    assert expert.questions == [], "what was answered is known, what failed is tried again"


def test_a_model_that_has_answered_nothing_is_no_model() -> None:
    """A server that takes no sound, say: every question fails, though a plain one would not."""
    with pytest.raises(ConnectionError, match="status 400"):
        RememberingMllm(Fragile(), AnswerStore()).ask(requests_of("broken 1", "broken 2"), 16)


def test_a_server_that_is_gone_ends_the_work_and_what_was_answered_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msa_remembering, "_KEPT_TOGETHER", 4)
    prompts = requests_of(*map(str, range(10)))
    with pytest.raises(ConnectionError, match="gone"):
        RememberingMllm(Fragile(gone_after=8), AnswerStore(tmp_path)).ask(prompts, 16)
    expert = Fragile()
    assert texts(RememberingMllm(expert, AnswerStore(tmp_path)).ask(prompts, 16)) == ["1.0"] * 10
    assert expert.questions == ["8", "9"]


def test_the_weights_are_read_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Slow(StubExpert):
        """Takes 100 s to load and 3 s to answer."""

        @property
        def model(self) -> None:
            clock[0] += 100

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            clock[0] += 3
            return super().generate(*args, **kwargs)

    asker = RememberingMllm(Slow(lambda _: Says(1.0)), AnswerStore())
    assert [given.seconds for given in asker.ask(requests_of("a", "b"), 16)] == [1.5, 1.5]
    assert [given.seconds for given in asker.ask(requests_of("b"), 16)] == [1.5] and clock == [103.0]
