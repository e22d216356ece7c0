"""Pair each answer with the user's next message, by content; pure.

A turn follows an answer when it comes from the same tenant, user and conversation id, repeats the answer's
messages and the answer itself word for word, calls of tools and their results included, adds one user message, and
started after the answer was finished: the digests of `records.PairingKeys` say so. Who wrote identical words is not
guessed: where more than one answer fits a follow-up, or an answer got several different follow-ups, none is paired.

An answer is durable before its follow-up can be written, but the two may lie in different partitions of the log, and
one reading may see the later one alone. So a follow-up is decided in the reading after the one that brought it, when
every answer that it can follow is known; clocks play no part in that. An answer whose log was away for longer is
paired when it comes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sdpo_ray.records import Message, Role, Turn


class NotPaired(StrEnum):
    """Why a turn that continues a conversation is nobody's follow-up."""

    AMBIGUOUS = "ambiguous"
    """More than one earlier answer fits, in the same words: strangers, or a question asked twice."""
    BRANCH = "branch"
    """The answer got several follow-ups in different words: the conversation was edited."""
    DUPLICATE_FOLLOW_UP = "duplicate_follow_up"
    """The same follow-up was sent again; the first one counts."""
    UNKNOWN_ANSWER = "unknown_answer"
    """It continues what was not answered here, or not stored, or waited for too long."""
    BEFORE_ANSWER = "before_answer"
    """It began before the only answers that fit were finished: a clock stepped back, or nobody read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingRow:
    """What pairing needs of a turn: a row of the table `pending`. Read by `pair`."""

    turn_id: str
    prompt: str
    parent: str
    continuation: str
    """These three are the turn's `PairingKeys`."""
    started_at_s: float
    finished_at_s: float
    turn_batch: int
    """The batch of `turns` that holds the turn."""
    batch: int
    """The batch of `pending` that brought this row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answered turn, and the turn whose last message reacts to it."""

    answer: PairingRow
    follow_up: PairingRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Made by `pair`; read by `curate.pipeline`."""

    pairs: tuple[Pair, ...]
    unpaired: Counter[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingCursor:
    """How far pairing has come, in batches of `pending`. Committed with the interactions of each round."""

    decided: int
    """Follow-ups up to this batch are decided."""
    upto: int
    """Those behind it and up to this one are decided now; `decided` where there are none."""
    seen: int
    """Answers up to this batch were known when the others were decided."""


def follows(follow_up: Turn, answer: Turn) -> bool:
    """Whether `follow_up` continues `answer`, in the stored words instead of their digests."""
    said = (*answer.messages, Message(role=Role.ASSISTANT, content=answer.response))
    return (
        follow_up.tenant == answer.tenant
        and follow_up.messages[-1].role is Role.USER
        and follow_up.messages[:-1] == said
        and answer.finished_at_s <= follow_up.started_at_s
    )


def pair(turns: Iterable[PairingRow], horizon: PairingCursor) -> Pairing:
    """Pairs and non-pairs that are decided now; what earlier rounds decided stays.

    `turns` are those behind `decided`, all others that share a key with them, and all that share one with an answer
    behind `seen`.
    """
    answers: dict[str, list[PairingRow]] = defaultdict(list)
    follow_ups: dict[str, list[PairingRow]] = defaultdict(list)
    for turn in turns:
        answers[turn.continuation].append(turn)
        if turn.parent and turn.batch <= horizon.upto:
            follow_ups[turn.parent].append(turn)
    pairs: list[Pair] = []
    unpaired: Counter[str] = Counter()
    for key in sorted(follow_ups):
        known = answers.get(key, [])
        certain: dict[str, list[PairingRow]] = defaultdict(list)
        for follow_up in follow_ups[key]:
            fitting = _fitting(follow_up, known)
            if not _undecided(follow_up, fitting, horizon):
                continue
            if len(fitting) == 1:
                certain[fitting[0].turn_id].append(follow_up)
            elif fitting:
                unpaired[NotPaired.AMBIGUOUS] += 1
            else:
                unpaired[NotPaired.BEFORE_ANSWER if known else NotPaired.UNKNOWN_ANSWER] += 1
        for answer in known:
            first = _choose(certain[answer.turn_id], _earlier(answer, follow_ups[key], horizon), unpaired)
            if first is not None:
                pairs.append(Pair(answer=answer, follow_up=first))
    return Pairing(pairs=tuple(pairs), unpaired=unpaired)


def _fitting(follow_up: PairingRow, known: Sequence[PairingRow]) -> list[PairingRow]:
    return [answer for answer in known if answer.finished_at_s <= follow_up.started_at_s]


def _undecided(follow_up: PairingRow, fitting: Sequence[PairingRow], horizon: PairingCursor) -> bool:
    """A follow-up is decided in its own round, and once more when an answer comes where there was none."""
    late = bool(fitting) and all(answer.batch > horizon.seen for answer in fitting)
    return follow_up.batch > horizon.decided or late


def _earlier(answer: PairingRow, follow_ups: Sequence[PairingRow], horizon: PairingCursor) -> list[PairingRow]:
    """Follow-ups that may have got this answer in earlier rounds: how many answers fitted then is not to be seen."""
    if answer.batch > horizon.seen:
        return []
    return [each for each in follow_ups if each.batch <= horizon.decided and answer.finished_at_s <= each.started_at_s]


def _choose(
    undecided: Sequence[PairingRow], earlier: Sequence[PairingRow], unpaired: Counter[str]
) -> PairingRow | None:
    """The follow-up that an answer gets now, if any; counts those that come to nothing."""
    if not undecided:
        return None
    texts = {each.prompt for each in (earlier or undecided)}
    if earlier:
        for each in undecided:
            unpaired[NotPaired.DUPLICATE_FOLLOW_UP if each.prompt in texts else NotPaired.BRANCH] += 1
        return None
    if len(texts) > 1:
        unpaired[NotPaired.BRANCH] += len(undecided)
        return None
    unpaired[NotPaired.DUPLICATE_FOLLOW_UP] += len(undecided) - 1
    return min(undecided, key=lambda each: (each.started_at_s, each.turn_id))
