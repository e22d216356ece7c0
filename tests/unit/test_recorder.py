import asyncio
from concurrent.futures import Future
from dataclasses import replace

from sdpo_ray.capture.conversation import Asked
from sdpo_ray.capture.recorder import Answered, Recorder
from sdpo_ray.records import Consent, FinishReason, Message, Role, Sampling, Turn, VersionSpan

ASKED = Asked(
    turn_id="t", user="", conversation_id="", consent=Consent.TRAIN,
    messages=(Message(role=Role.USER, content="hi"),), started_at_s=1.0,
)  # fmt: skip


def answered(*, choice: int = 0, logprobs: tuple[float, ...] = (-0.5, -0.25)) -> Answered:
    return Answered(
        choice=choice, response="ho", prompt_ids=(1, 2), response_ids=(3, 4), response_logprobs=logprobs,
        version_spans=(VersionSpan(policy_version=2, start=0, end=2),), finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=8, seed=None),
    )  # fmt: skip


class FakeJournal:
    """A journal whose disk is full while `error` is set."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.error: OSError | None = None

    def append(self, turn: Turn) -> "Future[None]":
        future: Future[None] = Future()
        if self.error is None:
            self.turns.append(turn)
            future.set_result(None)
        else:
            future.set_exception(self.error)
        return future


def test_a_recorded_turn_is_what_was_asked_and_answered():
    journal = FakeJournal()
    recorder = Recorder(journal)
    assert asyncio.run(recorder.record(ASKED, answered()))
    (turn,) = journal.turns
    assert (turn.turn_id, turn.response_ids, turn.response_logprobs) == ("t", (3, 4), (-0.5, -0.25))
    assert turn.policy_version == 2
    assert recorder.counters.values == {"recorded": 1}


def test_a_recorded_turn_has_the_tools_and_template_arguments_of_its_request():
    journal = FakeJournal()
    asked = replace(ASKED, tools="[1]", template_kwargs="{}")
    assert asyncio.run(Recorder(journal).record(asked, answered()))
    assert (journal.turns[0].tools, journal.turns[0].template_kwargs) == ("[1]", "{}")


def test_a_full_disk_costs_the_receipt_and_not_the_answer_until_there_is_room_again():
    journal = FakeJournal()
    recorder = Recorder(journal)
    journal.error = OSError(28, "No space left on device")
    assert not asyncio.run(recorder.record(ASKED, answered()))
    assert not recorder.healthy
    journal.error = None
    assert asyncio.run(recorder.record(ASKED, answered()))
    assert recorder.healthy
    assert recorder.counters.values == {"not_recorded.OSError": 1, "recorded": 1}


def test_a_turn_without_its_log_probs_is_refused_and_never_padded():
    journal = FakeJournal()
    recorder = Recorder(journal)
    assert not asyncio.run(recorder.record(ASKED, answered(logprobs=(-0.5,))))
    assert journal.turns == []
    assert recorder.counters.values == {"not_recorded.DataError": 1}


def test_further_choices_have_ids_of_their_own():
    journal = FakeJournal()
    recorder = Recorder(journal)
    for choice in (0, 1):
        asyncio.run(recorder.record(ASKED, answered(choice=choice)))
    assert [turn.turn_id for turn in journal.turns] == ["t", "t-1"]


def test_what_will_not_be_recorded_is_counted_by_reason():
    recorder = Recorder(FakeJournal())
    refused = Asked(
        turn_id="t", user="", conversation_id="", consent=Consent.NONE, messages=ASKED.messages, started_at_s=1.0
    )
    picture = Asked(turn_id="t", user="", conversation_id="", consent=Consent.TRAIN, messages=(), started_at_s=1.0)
    assert [recorder.wants(asked) for asked in (ASKED, refused, picture)] == [True, False, False]
    assert recorder.counters.values == {"not_recorded.no_consent": 1, "not_recorded.not_a_text_chat": 1}
