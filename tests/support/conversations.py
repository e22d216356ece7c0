"""Turns and conversations for tests, and hypothesis strategies of conversations whose true pairs are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from sdpo_ray.capture.pairing_keys import pairing_keys
from sdpo_ray.curate.pairing import PairingRow
from sdpo_ray.records import Consent, FinishReason, Message, Role, Sampling, Turn, VersionSpan
from tests.support.builders import tool_use

KEY = b"the key of pairing of all tests"


def chat(*texts: str) -> tuple[Message, ...]:
    """Messages with alternating roles, a user's first."""
    roles = (Role.USER, Role.ASSISTANT)
    return tuple(Message(role=roles[index % 2], content=text) for index, text in enumerate(texts))


def turn(turn_id: str, *texts: str, response: str = "Paris.", at_s: float = 100.0, **changes: Any) -> Turn:
    """An answered request that took one second; `texts` are its messages. User and conversation id stay as given."""
    stated: dict[str, Any] = {
        "turn_id": turn_id,
        "tenant": "default",
        "user": "",
        "conversation_id": "",
        "consent": Consent.TRAIN,
        "messages": chat(*(texts or ("What is the capital of France?",))),
        "response": response,
        "prompt_ids": (7, 8, 9),
        "response_ids": (1, 2),
        "response_logprobs": (-0.25, -1.5),
        "version_spans": (VersionSpan(policy_version=3, start=0, end=2),),
        "finish_reason": FinishReason.STOP,
        "sampling": Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=64, seed=None),
        "started_at_s": at_s,
        "finished_at_s": at_s + 1.0,
    }
    return changed(Turn(**(stated | {name: value for name, value in changes.items() if name != "keys"})), **changes)


def changed(before: Turn, **changes: Any) -> Turn:
    """`before` with other values, and the pairing keys that the recorder would then compute."""
    after = replace(before, **changes)
    if "keys" in changes:
        return after
    keys = pairing_keys(
        key=KEY,
        tenant=after.tenant,
        user=after.user,
        conversation_id=after.conversation_id,
        messages=after.messages,
        response=after.response,
    )
    return replace(after, keys=keys)


def pairing_row(each: Turn, *, batch: int = 1) -> PairingRow:
    """The row of `pending` that a turn becomes."""
    return PairingRow(
        turn_id=each.turn_id,
        prompt=each.keys.prompt,
        parent=each.keys.parent,
        continuation=each.keys.continuation,
        started_at_s=each.started_at_s,
        finished_at_s=each.finished_at_s,
        turn_batch=batch,
        batch=batch,
    )


def dialogue(name: str, *, follow_ups: int = 1, at_s: float = 100.0, **changes: Any) -> list[Turn]:
    """The conversation of one user: an opening, then `follow_ups` reactions."""
    texts = [f"question of {name}"]
    turns = []
    for index in range(follow_ups + 1):
        answer = f"answer {index} to {name}"
        turns.append(turn(f"{name}-{index}", *texts, response=answer, at_s=at_s + 10 * index, **changes))
        texts += [answer, f"shorter, {name} says for the {index + 1}. time"]
    return turns


@dataclass(frozen=True)
class Scenario:
    """Turns of several users, in the order in which the answers were finished and became durable."""

    turns: list[Turn]
    """Turns that are stored."""
    not_stored: list[Turn]
    """Turns without consent, which are not stored."""
    parents: dict[str, str]
    """Turn id to the id of the turn whose answer the user reacted to, stored or not."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis prints an example."""
        printer.text("Scenario:\n" + "\n".join(map(self._line, (*self.turns, *self.not_stored))))

    def _line(self, each: Turn) -> str:
        texts = [message.content or "call" for message in each.messages]
        caller = (each.tenant, each.user, each.conversation_id)
        times = f"{each.started_at_s}-{each.finished_at_s}"
        return f"{each.turn_id} {times} {caller} {texts} -> {each.response}; reacts to {self.parents.get(each.turn_id)}"

    def continued(self) -> int:
        """Number of turns that pairing has to decide."""
        return sum(bool(each.keys.parent) for each in self.turns)


def may_pair(answer: Turn, follow_up: Turn) -> bool:
    """Whether the two are, word for word, a question with its answer and the next request of the same caller."""
    same_caller = all(
        getattr(answer, name) == getattr(follow_up, name) for name in ("tenant", "user", "conversation_id")
    )
    history = (*answer.messages, Message(role=Role.ASSISTANT, content=answer.response))
    return same_caller and follow_up.messages[:-1] == history and follow_up.messages[-1].role is Role.USER


def brute_force(turns: Sequence[Turn]) -> dict[str, str]:
    """Follow-up id to answer id, by text: exactly one answer fits, and all its follow-ups have the same text."""
    fitting = {f.turn_id: [a for a in turns if may_pair(a, f) and a.finished_at_s <= f.started_at_s] for f in turns}
    certain = {f.turn_id: fits[0].turn_id for f in turns if len(fits := fitting[f.turn_id]) == 1}
    expected = {}
    for answer in set(certain.values()):
        reactions = sorted(
            (f for f in turns if certain.get(f.turn_id) == answer), key=lambda f: (f.started_at_s, f.turn_id)
        )
        if len({f.messages for f in reactions}) == 1:
            expected[reactions[0].turn_id] = answer
    return expected


def unambiguous_pairs(turns: Sequence[Turn]) -> set[tuple[str, str]]:
    """(follow-up, answer) of the pairs without a competing turn: they are paired however the log is read."""
    pairs, by_id = brute_force(turns), {each.turn_id: each for each in turns}
    return {(f, a) for f, a in pairs.items() if sum(may_pair(by_id[a], each) for each in turns) == 1}


@dataclass
class _User:
    tenant: str
    user: str
    conversation_id: str
    consents: bool
    turns: list[Turn]


_DAY_S = 86_400.0
_WORDS = st.sampled_from(["again", "no"])
_ANSWERS = st.sampled_from(["yes", "yes", "maybe"])


@st.composite
def scenarios(draw: st.DrawFn, *, max_turns: int = 14, lossy: bool = False, clock_steps: bool = False) -> Scenario:
    """Users with few phrases, so that several send the same text; they branch, edit, regenerate, use tools, return.

    With `lossy`, turns of some users are not stored; with `clock_steps`, clocks step back and forth.
    """
    users = [
        _User(
            draw(st.sampled_from(["default", "default", "other"])),
            draw(st.sampled_from(["", "", "u1", "u2"])),
            draw(st.sampled_from(["", "", "c1"])),
            not lossy or draw(st.booleans()),
            [],
        )
        for _ in range(3)
    ]
    made: list[tuple[float, Turn, bool]] = []
    parents: dict[str, str] = {}
    now = 0.0
    for index in range(draw(st.integers(1, max_turns))):
        now += draw(st.sampled_from([0.0, 0.5, 1.0, 1.0, 3 * _DAY_S]))
        user = draw(st.sampled_from(users))
        read = [each for each in user.turns if _durable_at(made, each) <= now]
        parent, messages = _request(draw, read, parents)
        took = draw(st.sampled_from([0.25, 1.5]))
        error_s = draw(st.sampled_from([0.0, 0.0, -2.0, 5.0])) if clock_steps else 0.0
        new = turn(
            f"t{index:02d}",
            messages=messages,
            response=draw(_ANSWERS),
            tenant=user.tenant,
            user=user.user,
            conversation_id=user.conversation_id,
            started_at_s=now + error_s,
            finished_at_s=now + error_s + took,
        )
        if parent is not None:
            parents[new.turn_id] = parent
        user.turns.append(new)
        made.append((now + took, new, user.consents))
    made.sort(key=lambda each: (each[0], each[1].turn_id))
    return Scenario(
        turns=[each for _, each, stored in made if stored],
        not_stored=[each for _, each, stored in made if not stored],
        parents=parents,
    )


def _durable_at(made: Sequence[tuple[float, Turn, bool]], one: Turn) -> float:
    return next(at_s for at_s, each, _ in made if each is one)


def _request(
    draw: st.DrawFn, read: Sequence[Turn], parents: Mapping[str, str]
) -> tuple[str | None, tuple[Message, ...]]:
    """The next messages of a user who has read these answers, and the id of the turn they react to, if any."""
    action = draw(st.sampled_from(["open", "react", "react", "react", "again", "edit", "result"]))
    if action == "open" or not read:
        return None, chat(draw(_WORDS))
    last = draw(st.sampled_from(read))
    history = (*last.messages, Message(role=Role.ASSISTANT, content=last.response))
    match action:
        case "again":
            # Regenerated, or sent twice by a client that lost the connection: it reacts to the same turn as the first.
            return parents.get(last.turn_id), last.messages
        case "edit":
            edited = replace(history[0], content=draw(_WORDS))
            return None if edited != history[0] else last.turn_id, (edited, *history[1:], *chat(draw(_WORDS)))
        case "result":
            # The client sends the result of a tool call, which is no reaction of the user.
            return None, (*last.messages, *tool_use(result=draw(_WORDS)))
    return last.turn_id, (*history, *chat(draw(_WORDS)))
