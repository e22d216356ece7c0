"""Requests and responses become redacted, keyed turns in the log, or are counted by the reason against it."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sdpo_ray.capture.recorder as module
from sdpo_ray.capture.chat_request import ChatRequest
from sdpo_ray.capture.engine_response import EngineResponse
from sdpo_ray.capture.feedback import FeedbackRequest
from sdpo_ray.capture.pairing_keys import pairing_keys
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.capture.recorder import THREAD_CHARS, Recorder
from sdpo_ray.records import Consent, Event, FinishReason, Message, Role, Sampling, ToolCall, Turn, VersionSpan
from sdpo_ray.redaction import Redactor
from sdpo_ray.redaction.turns import MAX_DIGITS
from tests.support.builders import dialogue
from tests.support.recorded_engine import KINDS, MemoryLog, recorder_of

ASKED = ChatRequest(
    turn_id="t", tenant="acme", user="", conversation_id="", consent=Consent.TRAIN,
    messages=dialogue("hi"), started_at_s=1.0,
)  # fmt: skip


def answered(*, choice: int = 0, response: str = "ho", logprobs: tuple[float, ...] = (-0.5, -0.25)) -> EngineResponse:
    return EngineResponse(
        choice=choice, response=response, prompt_ids=(1, 2), response_ids=(3, 4), response_logprobs=logprobs,
        version_spans=(VersionSpan(policy_version=2, start=0, end=2),), finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=8, seed=None),
    )  # fmt: skip


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def recorder(tmp_path: Path, log: MemoryLog) -> Recorder:
    return recorder_of(tmp_path, log)


def only(log: MemoryLog) -> Turn:
    (turn,) = log.events
    assert isinstance(turn, Turn)
    return turn


def test_a_recorded_turn_has_the_request_and_the_response(recorder: Recorder, log: MemoryLog) -> None:
    assert asyncio.run(recorder.record(ASKED, answered()))
    turn = only(log)
    assert (turn.turn_id, turn.response_ids, turn.response_logprobs) == ("t", (3, 4), (-0.5, -0.25))
    assert (turn.tenant, turn.user, turn.conversation_id) == ("acme", "", "")
    assert turn.policy_version == 2
    assert recorder.counters.values == {"recorded": 1}
    assert recorder.redactions.values == {}


def test_a_recorded_turn_has_the_tools_and_template_arguments_of_its_request(
    recorder: Recorder, log: MemoryLog
) -> None:
    asked = replace(ASKED, tools="[1]", template_kwargs="{}")
    assert asyncio.run(recorder.record(asked, answered()))
    assert (only(log).tools, only(log).template_kwargs) == ("[1]", "{}")


def test_user_and_conversation_are_stored_as_pseudonyms_and_the_keys_are_of_the_original_text(
    recorder: Recorder, log: MemoryLog, tmp_path: Path
) -> None:
    messages = dialogue("I am jane@example.org", "Hello jane@example.org", "Shorter")
    asked = replace(ASKED, user="jane@example.org", conversation_id="mail-jane@example.org", messages=messages)
    assert asyncio.run(recorder.record(asked, answered(response="Hi, jane@example.org")))
    turn, pseudonyms = only(log), Pseudonyms.load(tmp_path / "pseudonyms.json")
    assert "jane" not in repr(turn)
    assert turn.user == pseudonyms.of("jane@example.org")
    assert turn.conversation_id == turn.keys.conversation
    assert turn.keys == pairing_keys(
        key=pseudonyms.pairing_key,
        tenant="acme",
        user="jane@example.org",
        conversation_id="mail-jane@example.org",
        messages=messages,
        response="Hi, jane@example.org",
    )
    assert (turn.prompt_ids, turn.response_ids, turn.response_logprobs) == ((), (), ())
    assert recorder.redactions.values == {"email": 3}


def test_a_follow_up_is_paired_over_a_rotation_of_the_pseudonym_key(tmp_path: Path, log: MemoryLog) -> None:
    path = tmp_path / "pseudonyms.json"
    recorder = Recorder(log, Redactor(KINDS), lambda: Pseudonyms.load(path), timeout_s=15)
    asked = replace(ASKED, user="jane")
    asyncio.run(recorder.record(asked, answered(response="ho")))
    Pseudonyms.load(path).rotate()
    asyncio.run(recorder.record(replace(asked, messages=dialogue("hi", "ho", "again")), answered()))
    first, second = log.events
    assert isinstance(first, Turn)
    assert isinstance(second, Turn)
    assert first.user != second.user
    assert second.keys.parent == first.keys.continuation


def test_a_full_disk_costs_the_receipt_and_not_the_answer_until_there_is_space_again(
    recorder: Recorder, log: MemoryLog
) -> None:
    log.error = OSError(28, "No space left on device")
    assert not asyncio.run(recorder.record(ASKED, answered()))
    assert not recorder.healthy
    log.error = None
    assert asyncio.run(recorder.record(ASKED, answered()))
    assert recorder.healthy
    assert recorder.counters.values == {"not_recorded.OSError": 1, "recorded": 1}


def test_a_turn_without_its_log_probs_is_refused_and_never_padded(recorder: Recorder, log: MemoryLog) -> None:
    assert not asyncio.run(recorder.record(ASKED, answered(logprobs=(-0.5,))))
    assert log.events == []
    assert recorder.counters.values == {"not_recorded.DataError": 1}
    assert recorder.healthy


def test_text_that_cannot_be_written_is_refused_and_the_next_turn_is_not(recorder: Recorder, log: MemoryLog) -> None:
    assert not asyncio.run(recorder.record(replace(ASKED, messages=dialogue("\ud800")), answered()))
    assert recorder.counters.values == {"not_recorded.UnicodeEncodeError": 1}
    assert recorder.healthy
    assert asyncio.run(recorder.record(ASKED, answered()))


def test_further_choices_have_their_own_ids(recorder: Recorder, log: MemoryLog) -> None:
    for choice in (0, 1):
        asyncio.run(recorder.record(ASKED, answered(choice=choice)))
    assert [event.turn_id for event in log.events] == ["t", "t-1"]


def test_calls_and_the_name_of_a_personal_policy_are_on_the_turn(recorder: Recorder, log: MemoryLog) -> None:
    call = ToolCall(call_id="", name="weather", arguments="{}")
    assert asyncio.run(recorder.record(ASKED, replace(answered(), response_calls=(call,), adapter="ann@v2")))
    assert (only(log).response_calls, only(log).adapter) == ((call,), "ann@v2")


def test_an_aborted_answer_is_recorded_as_such_with_the_time_of_its_last_token(
    recorder: Recorder, log: MemoryLog
) -> None:
    broken = replace(answered(response="h"), finish_reason=FinishReason.ABORT, finished_at_s=3.0)
    assert asyncio.run(recorder.record(ASKED, answered(choice=1), broken))
    turns = {event.turn_id: event for event in log.events if isinstance(event, Turn)}
    assert (turns["t"].finish_reason, turns["t"].finished_at_s) == (FinishReason.ABORT, 3.0)
    assert turns["t-1"].finished_at_s > 1e9
    assert recorder.counters.values == {"recorded": 2, "aborted": 1}
    # A follow-up that repeats the text the user saw is paired with it.
    asyncio.run(recorder.record(replace(ASKED, messages=dialogue("hi", "h", "Go on")), answered()))
    last = log.events[-1]
    assert isinstance(last, Turn)
    assert last.keys.parent == turns["t"].keys.continuation != turns["t-1"].keys.continuation


def test_answers_are_stored_together_and_one_that_fails_costs_the_receipt(recorder: Recorder, log: MemoryLog) -> None:
    assert not asyncio.run(recorder.record(ASKED, answered(), answered(choice=1, logprobs=()), answered(choice=2)))
    assert [event.turn_id for event in log.events if isinstance(event, Turn)] == ["t", "t-2"]
    assert recorder.counters.values == {"recorded": 2, "not_recorded.DataError": 1}


def test_turns_recorded_in_the_background_are_stored_to_the_end(recorder: Recorder, log: MemoryLog) -> None:
    async def leave() -> None:
        recorder.record_later(ASKED, answered())
        while not recorder.counters.values:
            await asyncio.sleep(0)

    asyncio.run(leave())
    assert len(log.events) == 1


def test_requests_that_are_not_recorded_are_counted_by_reason(recorder: Recorder) -> None:
    refused, picture = replace(ASKED, consent=Consent.NONE), replace(ASKED, messages=())
    assert [recorder.wants(asked) for asked in (ASKED, refused, picture)] == [True, False, False]
    assert recorder.counters.values == {"not_recorded.no_consent": 1, "not_recorded.not_a_text_chat": 1}


class BrokenRedactor(Redactor):
    """Fails with an error that repeats its input."""

    def redact(self, text: str) -> Any:
        raise ValueError(f"cannot redact {text}")


GIVEN = FeedbackRequest(
    turn_id="t", tenant="acme", user="", consent=Consent.TRAIN, comment="my secret", thumb=None, edited="",
    given_at_s=1.0,
)  # fmt: skip


def test_a_turn_that_cannot_be_redacted_is_not_recorded_and_appears_in_no_log_line(
    tmp_path: Path, log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    pseudonyms = Pseudonyms.load(tmp_path / "pseudonyms.json")
    recorder = Recorder(log, BrokenRedactor(KINDS), lambda: pseudonyms, timeout_s=15)
    with caplog.at_level(logging.DEBUG):
        assert not asyncio.run(recorder.record(replace(ASKED, messages=dialogue("my secret")), answered()))
        assert asyncio.run(recorder.record_feedback(GIVEN)) is None
    assert log.events == []
    assert recorder.counters.values == recorder.feedback.values == {"not_recorded.redaction": 1}
    assert recorder.healthy
    assert "redaction failed with ValueError" in caplog.text
    assert "secret" not in caplog.text
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda asked: (replace(asked, messages=dialogue("my secret \ud800")), answered()),
        lambda asked: (replace(asked, messages=(Message(role=Role.SYSTEM, content="my secret"),)), answered()),
        lambda asked: (replace(asked, messages=dialogue("my secret")), answered(logprobs=())),
    ],
)
def test_no_log_line_repeats_user_text(
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[ChatRequest], tuple[ChatRequest, EngineResponse]],
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert not asyncio.run(recorder.record(*spoil(ASKED)))
    assert "not recorded" in caplog.text
    assert "secret" not in caplog.text


def test_a_log_that_repeats_an_event_in_its_error_is_not_quoted(
    recorder: Recorder, log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.error = RuntimeError("could not deliver: my secret")
    assert not asyncio.run(recorder.record(ASKED, answered()))
    assert recorder.counters.values == {"not_recorded.RuntimeError": 1}
    assert not recorder.healthy
    assert "secret" not in caplog.text


@pytest.mark.parametrize(("longer", "elsewhere"), [(0, False), (1, True)])
def test_a_long_turn_is_redacted_in_a_thread(
    recorder: Recorder, log: MemoryLog, monkeypatch: pytest.MonkeyPatch, longer: int, elsewhere: bool
) -> None:
    threads: list[threading.Thread] = []

    def redact(turn: Turn, redactor: Redactor) -> Turn:
        threads.append(threading.current_thread())
        return turn

    monkeypatch.setattr(module, "redact_turn", redact)
    messages = dialogue("x" * (THREAD_CHARS - len("ho") + longer))
    assert asyncio.run(recorder.record(replace(ASKED, messages=messages), answered()))
    assert [thread is not threading.main_thread() for thread in threads] == [elsewhere]


@pytest.mark.parametrize("choices", [1, 3])
def test_a_client_that_disconnects_leaves_its_turns_stored_and_counted(tmp_path: Path, choices: int) -> None:
    class SlowLog(MemoryLog):
        def __init__(self) -> None:
            super().__init__()
            self.durable: list[Future[None]] = []

        def append(self, event: Event) -> "Future[None]":
            self.events.append(event)
            self.durable.append(Future())
            return self.durable[-1]

    log = SlowLog()
    recorder = recorder_of(tmp_path, log)

    async def hang_up() -> None:
        storing = asyncio.ensure_future(recorder.record(ASKED, *(answered(choice=n) for n in range(choices))))
        # The log has them before the result is awaited.
        assert len(log.events) == choices
        await asyncio.sleep(0)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        for durable in log.durable:
            durable.set_result(None)
        while recorder.counters.values["recorded"] < choices:
            await asyncio.sleep(0)

    asyncio.run(hang_up())
    assert recorder.counters.values == {"recorded": choices}


def test_feedback_without_consent_is_not_recorded(recorder: Recorder, log: MemoryLog) -> None:
    assert asyncio.run(recorder.record_feedback(replace(GIVEN, consent=Consent.NONE))) is None
    assert log.events == []
    assert recorder.feedback.values == {"not_recorded.no_consent": 1}


def test_an_answer_does_not_wait_for_a_disk_that_hangs(tmp_path: Path) -> None:
    class HungLog(MemoryLog):
        def append(self, event: Event) -> "Future[None]":
            return Future()

    recorder = recorder_of(tmp_path, HungLog(), timeout_s=0.01)
    assert not asyncio.run(recorder.record(ASKED, answered()))
    assert recorder.counters.values == {"not_recorded.TimeoutError": 1}
    assert not recorder.healthy


def test_a_log_that_fails_every_turn_is_logged_once_and_counted_each_time(
    recorder: Recorder, log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (OSError(28, "full"), None, OSError(28, "full")):
        log.error = error
        for _ in range(3):
            assert asyncio.run(recorder.record(ASKED, answered())) is (error is None)
    assert recorder.counters.values == {"recorded": 3, "not_recorded.OSError": 6}
    assert caplog.text.count("not recorded") == 2


def test_a_turn_with_too_many_digits_is_not_recorded_and_counted_by_name(recorder: Recorder, log: MemoryLog) -> None:
    table = dialogue("3.14 " * MAX_DIGITS)
    assert not asyncio.run(recorder.record(replace(ASKED, messages=table), answered()))
    assert (log.events, recorder.counters.values) == ([], {"not_recorded.TooManyDigits": 1})
    assert recorder.healthy
