"""Pair each answer with the user's next message, by content; pure.

A turn follows an answer when it comes from the same tenant, user and conversation id, repeats the answer's
messages and the answer itself word for word, calls of tools and their results included, adds one user message, and
started after the answer was finished. A turn that ends with a tool's result is nobody's follow-up.
Who wrote identical words is not guessed: where more than one answer fits a follow-up, or an answer got
several different follow-ups, none is paired. Every answer must be known before its follow-ups are.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from sdpo_ray.records import Message, Role, Turn


class Unpaired(StrEnum):
    """Why a turn that continues a conversation is nobody's follow-up."""

    AMBIGUOUS = "ambiguous"
    """More than one earlier answer fits, in the same words: strangers, or a question asked twice."""
    BRANCH = "branch"
    """The answer got several follow-ups in different words: the conversation was edited."""
    DUPLICATE_FOLLOW_UP = "duplicate_follow_up"
    """The same follow-up was sent again; the first one counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed:
    """What pairing needs of a turn. Made by `keyed`; read by `pair`."""

    turn_id: str
    prompt_key: str
    """Digest of everything that was asked: two requests in the same words share it."""
    parent_key: str
    """The `continuation_key` of the answer that this turn follows; empty when it follows none."""
    continuation_key: str
    """Digest of all messages with the answer behind them."""
    started_at_s: float
    finished_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Ids of an answered turn and of the turn whose last message reacts to it."""

    answer: str
    follow_up: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Made by `pair`; read by `curate.stream`. Each turn is counted once in its life, in `pairs` or `unpaired`."""

    pairs: tuple[Pair, ...]
    unpaired: Counter[str]


def prompt_key(turn: Turn) -> str:
    return _key(turn, turn.messages)


def continuation_key(turn: Turn) -> str:
    return _key(turn, (*turn.messages, Message(role=Role.ASSISTANT, content=turn.response)))


def parent_key(turn: Turn) -> str:
    *before, last = turn.messages
    reacts = last.role is Role.USER and bool(before) and before[-1].role is Role.ASSISTANT
    return _key(turn, before) if reacts else ""


def keyed(turn: Turn) -> Keyed:
    return Keyed(
        turn_id=turn.turn_id,
        prompt_key=prompt_key(turn),
        parent_key=parent_key(turn),
        continuation_key=continuation_key(turn),
        started_at_s=turn.started_at_s,
        finished_at_s=turn.finished_at_s,
    )


def conversation(turn: Turn) -> str:
    """Digest that all turns of one conversation share, whatever was edited after its first user message.

    Strangers who open with the same words share it too, which keeps them on one side of the held-out split.
    """
    if turn.conversation_id:
        return _digest("id", turn.tenant, turn.user, turn.conversation_id)
    first = next(index for index, message in enumerate(turn.messages) if message.role is Role.USER)
    return _digest("opening", turn.tenant, turn.user, *_words(turn.messages[: first + 1]))


def follows(follow_up: Turn, answer: Turn) -> bool:
    """Whether `follow_up` continues `answer`, on the turns themselves instead of their digests."""
    said = (*answer.messages, Message(role=Role.ASSISTANT, content=answer.response))
    return (
        (follow_up.tenant, follow_up.user, follow_up.conversation_id)
        == (answer.tenant, answer.user, answer.conversation_id)
        and follow_up.messages[-1].role is Role.USER
        and follow_up.messages[:-1] == said
        and answer.finished_at_s <= follow_up.started_at_s
    )


def pair(turns: Iterable[Keyed], new: Set[str]) -> Pairing:
    """Pairs and non-pairs that the turns with ids in `new` decide; what earlier calls decided stays.

    `turns` are the new ones and all older ones that share a key with them.
    """
    answers: dict[str, list[Keyed]] = defaultdict(list)
    follow_ups: dict[str, list[Keyed]] = defaultdict(list)
    for turn in turns:
        answers[turn.continuation_key].append(turn)
        if turn.parent_key:
            follow_ups[turn.parent_key].append(turn)
    pairs: list[Pair] = []
    unpaired: Counter[str] = Counter()
    for key in sorted(follow_ups.keys() & answers.keys()):
        certain: dict[str, list[Keyed]] = defaultdict(list)
        for follow_up in follow_ups[key]:
            fitting = [a.turn_id for a in answers[key] if a.finished_at_s <= follow_up.started_at_s]
            if len(fitting) == 1:
                certain[fitting[0]].append(follow_up)
            elif fitting and _undecided(follow_up, fitting, new):
                unpaired[Unpaired.AMBIGUOUS] += 1
        for answer in answers[key]:
            undecided = [f for f in certain[answer.turn_id] if _undecided(f, [answer.turn_id], new)]
            # Whether an older follow-up got this answer, while fewer answers fitted it, is no longer to be seen.
            decided = [f for f in follow_ups[key] if answer.finished_at_s <= f.started_at_s and f.turn_id not in new]
            first = _choose(undecided, decided if answer.turn_id not in new else [], unpaired)
            if first is not None:
                pairs.append(Pair(answer=answer.turn_id, follow_up=first.turn_id))
    return Pairing(pairs=tuple(pairs), unpaired=unpaired)


def _choose(undecided: Sequence[Keyed], decided: Sequence[Keyed], unpaired: Counter[str]) -> Keyed | None:
    """The follow-up that an answer gets now, if any; counts those that come to nothing."""
    if not undecided:
        return None
    texts = {c.prompt_key for c in (decided or undecided)}
    if decided:
        for candidate in undecided:
            unpaired[Unpaired.DUPLICATE_FOLLOW_UP if candidate.prompt_key in texts else Unpaired.BRANCH] += 1
        return None
    if len(texts) > 1:
        unpaired[Unpaired.BRANCH] += len(undecided)
        return None
    if len(undecided) > 1:
        unpaired[Unpaired.DUPLICATE_FOLLOW_UP] += len(undecided) - 1
    return min(undecided, key=lambda c: (c.started_at_s, c.turn_id))


def _undecided(follow_up: Keyed, fitting: Sequence[str], new: Set[str]) -> bool:
    """A follow-up was decided when it and an answer that fits it were first known together."""
    return follow_up.turn_id in new or all(answer in new for answer in fitting)


def _key(turn: Turn, messages: Sequence[Message]) -> str:
    return _digest(turn.tenant, turn.user, turn.conversation_id, *_words(messages))


def _words(messages: Sequence[Message]) -> list[str]:
    return [msgspec.json.encode(message).decode() for message in messages]


def _digest(*words: str) -> str:
    """sha256 over the words, each behind its length, so that no two lists of words look alike."""
    digest = hashlib.sha256()
    for word in words:
        data = word.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
