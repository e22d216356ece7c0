"""Recorded conversations replayed through the HTTP API, the journal and the curator, and compared as pairs.

A recorded engine returns the answers of the recording. Every pair is compared with the recording by the ids of its
turns and by its text; a turn without a pair has a reason that the recording explains. `SDPO_REPLAY=all` replays all of
it, otherwise a part is replayed.
"""

import asyncio
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.pairing import NotPaired
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.headers import CONVERSATION_ID, TURN_ID
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Interaction
from sdpo_ray.redaction import Redactor
from sdpo_ray.tables.arrow_schemas import interactions_from_arrow
from tests.support.paths import SHARED_DATA
from tests.support.recorded_engine import client_of, text_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
HH = SHARED_DATA / "hh_rlhf" / "derived" / "helpful-base_interactions.jsonl"
OASST = SHARED_DATA / "oasst" / "derived" / "en_100_interactions.jsonl"
ALL = os.environ.get("SDPO_REPLAY") == "all"
AT_ONCE = 48
CAPTURE = CaptureConfig()
CURATE = CurateConfig(max_follow_up_chars=20_000, max_per_user_hour=0, max_copies=1000)
"""Limits of length and rate are off: refusals have other reasons."""
THE_END = "(Here the recording ends.)"


@dataclass(frozen=True)
class Who:
    """What a request says about its client; two anonymous conversations may say the same."""

    user: str = ""
    conversation_id: str = ""


@dataclass(eq=False)
class Asked:
    """One request of the recording."""

    messages: list[dict[str, str]]
    answer: str
    follows: "Asked | None"
    who: Who
    turn_id: str = ""

    @property
    def continuation(self) -> str:
        """The text that a follow-up repeats, and the client that sends it."""
        said = [*self.messages, {"role": "assistant", "content": self.answer}]
        return json.dumps([self.who.user, self.who.conversation_id, said])


@dataclass
class Replay:
    """A recording after replay and curation."""

    requests: list[Asked]
    interactions: dict[str, Interaction]
    refused: Counter[str]
    counted: Counter[str] = field(default_factory=Counter)


def triples(path: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """(prompt, completion, user_response) by conversation, in the order of the file."""
    if not path.exists():
        pytest.skip(f"there is no {path.name} in the folder shared/data beside the repository")
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        triple = json.loads(line)
        found[str(triple[name])].append(triple)
    return found


def requests_of(recorded: Iterable[dict[str, Any]], who: Who) -> list[Asked]:
    """The requests of one conversation or tree, parents first: one an answer, and one an unanswered reaction."""
    requests: list[Asked] = []
    by_words: dict[str, Asked] = {}
    reactions: dict[str, tuple[list[dict[str, str]], Asked]] = {}
    for triple in recorded:
        prompt, completion = triple["prompt"], triple["completion"]
        words = json.dumps([*prompt, completion])
        if words not in by_words:
            parent = by_words[json.dumps(prompt[:-1])] if len(prompt) > 1 else None
            by_words[words] = Asked(prompt, completion["content"], parent, who)
            requests.append(by_words[words])
        said = [*prompt, completion, triple["user_response"]]
        reactions.setdefault(json.dumps(said), (said, by_words[words]))
    answered = {json.dumps(request.messages) for request in requests}
    unanswered = [each for words, each in reactions.items() if words not in answered]
    return [*requests, *(Asked(said, THE_END, parent, who) for said, parent in unanswered)]


def replay(conversations: Sequence[Sequence[Asked]], layout: Layout) -> list[Asked]:
    """Send all requests, many conversations concurrently, each in its order. Yields the requests in any order."""
    log = open_log(layout, CAPTURE)
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    redactor = Redactor(CAPTURE.redact, phone_regions=CAPTURE.phone_regions)
    recorder = Recorder(log, redactor, lambda: pseudonyms, timeout_s=15)
    requests = [request for conversation in conversations for request in conversation]
    answers = {str(number): request.answer for number, request in enumerate(requests)}
    numbers = {request: str(number) for number, request in enumerate(requests)}

    async def send(client: httpx.AsyncClient, request: Asked) -> None:
        number = numbers[request]
        body = {"model": "policy", "messages": request.messages, "stream": int(number) % 2 == 0}
        body |= {"metadata": {"recording": number}} | ({"user": request.who.user} if request.who.user else {})
        named = request.who.conversation_id
        reply = await client.post("/v1/chat/completions", json=body, headers={CONVERSATION_ID: named} if named else {})
        assert text_of(reply) == request.answer
        assert "not stored" not in reply.text
        request.turn_id = reply.headers[TURN_ID]

    async def sit(client: httpx.AsyncClient, waiting: Iterator[Sequence[Asked]]) -> None:
        for conversation in waiting:
            for request in conversation:
                await send(client, request)

    async def everybody() -> None:
        waiting = iter(conversations)
        async with client_of(recorder, lambda body: answers[body["metadata"]["recording"]], capture=CAPTURE) as client:
            await asyncio.gather(*(sit(client, waiting) for _ in range(AT_ONCE)))

    asyncio.run(everybody())
    log.close()
    assert recorder.counters.values == {"recorded": len(requests)}
    return requests


def curated(conversations: Sequence[Sequence[Asked]], folder: Path) -> Replay:
    layout = Layout(folder)
    requests = replay(conversations, layout)
    curator = Curator(layout, open_log(layout, CAPTURE), curate=CURATE, capture=CAPTURE)
    refused: Counter[str] = Counter()
    # The turns that one advance ingests are decided by the next.
    for _ in range(2):
        progress = curator.advance()
        refused += progress.refused
    assert (progress.undecided, progress.turns_total) == (0, len(requests))
    found = interactions_from_arrow(curator.interactions.read())
    return Replay(requests=requests, interactions={each.interaction_id: each for each in found}, refused=refused)


def check(replayed: Replay) -> None:
    """No pair is wrong, every pair that the recording makes certain exists, and each follow-up is accounted for."""
    requests = {request.turn_id: request for request in replayed.requests}
    assert len(requests) == len(replayed.requests)
    redactor = Redactor(CAPTURE.redact, phone_regions=CAPTURE.phone_regions)
    for turn_id, pair in replayed.interactions.items():
        answer, follow_up = requests[turn_id], requests[pair.follow_up_turn_id]
        assert follow_up.follows is answer, "strangers were merged"
        recorded = (
            *(message["content"] for message in answer.messages),
            answer.answer,
            follow_up.messages[-1]["content"],
        )
        stored = (*(message.content for message in pair.turn.messages), pair.turn.response, pair.follow_up)
        written = tuple(redactor.redact(text)[0] for text in recorded)
        assert stored == written
        replayed.counted["redacted"] += recorded != written
        assert bool(pair.turn.redactions) == (recorded[:-1] != written[:-1])

    alike = Counter(request.continuation for request in replayed.requests)
    reactions: dict[Asked, set[str]] = defaultdict(set)
    for request in replayed.requests:
        if request.follows is not None:
            reactions[request.follows].add(request.messages[-1]["content"])
    for answer, said in reactions.items():
        certain = alike[answer.continuation] == 1 and len(said) == 1
        replayed.counted["answers with a reaction"] += 1
        replayed.counted["answers with one reaction in words of their own"] += certain
        assert not certain or answer.turn_id in replayed.interactions
        replayed.counted["identical words"] += alike[answer.continuation] > 1
        replayed.counted["branching answers"] += len(said) > 1
    replayed.counted["pairs"] = len(replayed.interactions)
    num_follow_ups = sum(request.follows is not None for request in replayed.requests)
    reasons = {NotPaired.AMBIGUOUS, NotPaired.BRANCH, NotPaired.DUPLICATE_FOLLOW_UP}
    assert set(replayed.refused) <= reasons
    assert len(replayed.interactions) + replayed.refused.total() == num_follow_ups
    print(dict(replayed.counted), dict(replayed.refused), f"{len(requests)} requests")


def shuffled(conversations: list[list[Asked]]) -> list[list[Asked]]:
    random.Random(4).shuffle(conversations)
    return conversations


@pytest.mark.usefixtures("ray_cluster")
def test_conversations_of_named_users_come_back_as_pairs(tmp_path: Path) -> None:
    recorded = list(triples(HH, "conversation").values())[: None if ALL else 150]
    named = [requests_of(each, Who(user=f"person-{number}@example.org")) for number, each in enumerate(recorded)]
    replayed = curated(shuffled(named), tmp_path)
    check(replayed)
    assert len(replayed.interactions) == sum(map(len, recorded))
    assert replayed.refused == {}


@pytest.mark.usefixtures("ray_cluster")
def test_with_anonymous_and_identical_conversations_no_pair_is_wrong_and_no_certain_pair_is_missing(
    tmp_path: Path,
) -> None:
    recorded = list(triples(HH, "conversation").values())[: None if ALL else 150]
    conversations = []
    for number, each in enumerate(recorded):
        who = (
            Who(),
            Who(conversation_id=f"chat of person-{number}@example.org"),
            Who(user=f"person-{number}@example.org"),
            Who(user=f"person-{number % 7}@example.org", conversation_id="1"),
        )[number % 4]
        conversations.append(requests_of(each, who))
        if number % 5 == 0:
            # The same text is sent again at about the same time, by the same client or by another.
            conversations.append(requests_of(each, Who(user="twin@example.org") if number % 2 else who))
    replayed = curated(shuffled(conversations), tmp_path)
    check(replayed)
    assert replayed.refused[NotPaired.AMBIGUOUS] > 0
    assert replayed.counted["identical words"] > 0


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("named", [True, False], ids=["named", "anonymous"])
def test_in_a_tree_of_edits_and_regenerations_each_reaction_finds_its_answer_or_none(
    tmp_path: Path, named: bool
) -> None:
    trees = list(triples(OASST, "tree_id").values())[: None if ALL else 40]
    asked = [requests_of(each, Who(user=f"person-{n}") if named else Who()) for n, each in enumerate(trees)]
    replayed = curated(shuffled(asked), tmp_path)
    check(replayed)
    # By hand from the file: an answer with differing reactions gives no pair, a repeated reaction counts once.
    reactions: dict[str, list[str]] = defaultdict(list)
    for number, requests in enumerate(asked):
        for request in requests:
            if request.follows is not None:
                reactions[f"{number} {request.follows.continuation}"].append(request.messages[-1]["content"])
    expected = {
        NotPaired.BRANCH: sum(len(said) for said in reactions.values() if len(set(said)) > 1),
        NotPaired.DUPLICATE_FOLLOW_UP: sum(len(said) - 1 for said in reactions.values() if len(set(said)) == 1),
    }
    assert {NotPaired(reason): n for reason, n in replayed.refused.items()} == expected
    assert len(replayed.interactions) == sum(len(set(said)) == 1 for said in reactions.values())
