"""Follow-up pairing: find the answer that each turn continues, by content. Pure functions.

A turn follows an answer when it comes from the same tenant, user and conversation id, repeats the answer's messages
and the answer itself word for word, including tool calls and their results, adds one user message, and started after
the answer was finished. The digests of `records.PairingKeys` are compared instead of the text. Nothing is guessed:
when more than one answer fits a follow-up, or an answer got several different follow-ups, none of them is paired.

An answer is durable before its follow-up can be written, but the two may lie in different partitions of the log, and
one ingest may read the later one alone. So a follow-up is decided in the round after the one that brought it, when
every answer that it can follow is known. This does not depend on clocks. An answer whose partition was not readable
for longer is paired when it arrives.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sdpo_ray.records import Message, Role, Turn


class NotPaired(StrEnum):
    """Why a turn that continues a conversation is not paired with an answer."""

    AMBIGUOUS = "ambiguous"
    """More than one earlier answer fits word for word: of several anonymous users, or a question asked twice."""
    BRANCH = "branch"
    """The answer got several follow-ups with different text: the conversation was edited."""
    DUPLICATE_FOLLOW_UP = "duplicate_follow_up"
    """The same follow-up was sent again; only the first one is paired."""
    UNKNOWN_ANSWER = "unknown_answer"
    """The answer was not made here, or not stored, or is older than `curate.follow_up_days`."""
    BEFORE_ANSWER = "before_answer"
    """It started before the answers that fit were finished: a clock stepped back, or the user did not wait for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingRow:
    """What pairing needs of a turn: a row of the table `pending`. Made by `curate.pairing_index`; read by `pair`."""

    turn_id: str
    prompt: str
    parent: str
    continuation: str
    """These three are digests of the turn's `PairingKeys`."""
    started_at_s: float
    finished_at_s: float
    """Both are Unix times."""
    turn_batch: int
    """The batch of `turns` that holds the turn."""
    batch: int
    """The batch of `pending` that brought this row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answered turn, and the turn whose last message reacts to it. Made by `pair`; read by `curate.pipeline`."""

    answer: PairingRow
    follow_up: PairingRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """What one round decided. Made by `pair`; read by `curate.pipeline`."""

    pairs: tuple[Pair, ...]
    not_paired: Counter[str]
    """Follow-ups without a pair, by `NotPaired`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingCursor:
    """Progress of pairing, in batches of `pending`. Committed with the interactions of each round."""

    decided: int
    """Follow-ups up to this batch are decided."""
    upto: int
    """Follow-ups after `decided` and up to this batch are decided in this round; `decided` when there are none."""
    seen: int
    """Answers up to this batch were known when the follow-ups up to `decided` were decided."""


def follows(follow_up: Turn, answer: Turn) -> bool:
    """Whether `follow_up` continues `answer`, by the stored text instead of the digests."""
    history = (*answer.messages, Message(role=Role.ASSISTANT, content=answer.response))
    return (
        follow_up.tenant == answer.tenant
        and follow_up.messages[-1].role is Role.USER
        and follow_up.messages[:-1] == history
        and answer.finished_at_s <= follow_up.started_at_s
    )


def pair(turns: Iterable[PairingRow], cursor: PairingCursor) -> Pairing:
    """Decide the follow-ups of one round; decisions of earlier rounds stay.

    `turns` (`pairing_index.related`) must hold the turns after `cursor.decided`, all turns that share a key with one of
    them, and all turns that share a key with an answer after `cursor.seen`.
    """
    answers: dict[str, list[PairingRow]] = defaultdict(list)
    follow_ups: dict[str, list[PairingRow]] = defaultdict(list)
    for turn in turns:
        answers[turn.continuation].append(turn)
        if turn.parent and turn.batch <= cursor.upto:
            follow_ups[turn.parent].append(turn)
    pairs: list[Pair] = []
    not_paired: Counter[str] = Counter()
    for key in sorted(follow_ups):
        known = answers.get(key, [])
        certain: dict[str, list[PairingRow]] = defaultdict(list)
        for follow_up in follow_ups[key]:
            fitting = _fitting(follow_up, known)
            if not _is_due(follow_up, fitting, cursor):
                continue
            if len(fitting) == 1:
                certain[fitting[0].turn_id].append(follow_up)
            elif fitting:
                not_paired[NotPaired.AMBIGUOUS] += 1
            else:
                not_paired[NotPaired.BEFORE_ANSWER if known else NotPaired.UNKNOWN_ANSWER] += 1
        for answer in known:
            first = _choose(certain[answer.turn_id], _earlier(answer, follow_ups[key], cursor), not_paired)
            if first is not None:
                pairs.append(Pair(answer=answer, follow_up=first))
    return Pairing(pairs=tuple(pairs), not_paired=not_paired)


def _fitting(follow_up: PairingRow, known: Sequence[PairingRow]) -> list[PairingRow]:
    """The answers that were finished before the follow-up started."""
    return [answer for answer in known if answer.finished_at_s <= follow_up.started_at_s]


def _is_due(follow_up: PairingRow, fitting: Sequence[PairingRow], cursor: PairingCursor) -> bool:
    """Whether to decide a follow-up now: in its own round, and again when its first fitting answers arrive later."""
    late = bool(fitting) and all(answer.batch > cursor.seen for answer in fitting)
    return follow_up.batch > cursor.decided or late


def _earlier(answer: PairingRow, follow_ups: Sequence[PairingRow], cursor: PairingCursor) -> list[PairingRow]:
    """Follow-ups that may have been paired with this answer in earlier rounds.

    May have: how many answers fitted them at that time is not known any more.
    """
    if answer.batch > cursor.seen:
        return []
    return [each for each in follow_ups if each.batch <= cursor.decided and answer.finished_at_s <= each.started_at_s]


def _choose(due: Sequence[PairingRow], earlier: Sequence[PairingRow], not_paired: Counter[str]) -> PairingRow | None:
    """The follow-up that is paired with an answer now, if any; counts the others in `not_paired`."""
    if not due:
        return None
    texts = {each.prompt for each in (earlier or due)}
    if earlier:
        for each in due:
            not_paired[NotPaired.DUPLICATE_FOLLOW_UP if each.prompt in texts else NotPaired.BRANCH] += 1
        return None
    if len(texts) > 1:
        not_paired[NotPaired.BRANCH] += len(due)
        return None
    not_paired[NotPaired.DUPLICATE_FOLLOW_UP] += len(due) - 1
    return min(due, key=lambda each: (each.started_at_s, each.turn_id))
