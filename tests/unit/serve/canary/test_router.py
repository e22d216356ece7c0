"""Which policy answers a chat while a canary runs, through the real middleware."""

import math
from collections import Counter
from pathlib import Path

import httpx
import pytest

from sdpo_ray.capture.pairing_keys import owners
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.headers import POLICY_VERSION
from tests.support.canary import (
    CANDIDATE_TEXT,
    CHAMPION_TEXT,
    FakeCanary,
    UsersApp,
    ask,
    chat_body,
    users_of,
    with_client,
)
from tests.support.recorded_engine import text_of


def test_without_a_canary_every_chat_reaches_the_champion(tmp_path: Path):
    users_app, canary = UsersApp(tmp_path), FakeCanary()
    reply = ask(users_app, canary, chat_body())
    assert text_of(reply) == CHAMPION_TEXT
    assert canary.asked == []
    assert users_app.counted == {}


def test_a_conversation_stays_with_its_policy_over_its_turns_and_on_every_replica(users_app: UsersApp):
    async def talk(client: httpx.AsyncClient) -> dict[str, set[str]]:
        met: dict[str, set[str]] = {}
        for number in range(30):
            messages = [{"role": "user", "content": f"Question {number}?"}]
            for _ in range(3):
                reply = await client.post("/v1/chat/completions", json=chat_body(messages=messages))
                met.setdefault(f"{number}", set()).add(reply.headers[POLICY_VERSION])
                messages += [{"role": "assistant", "content": text_of(reply)}, {"role": "user", "content": "More."}]
        return met

    first, second = with_client(users_app, FakeCanary(), talk), with_client(users_app, FakeCanary(), talk)
    assert {len(versions) for versions in first.values()} == {1}
    assert {version for versions in first.values() for version in versions} == {"0", "7"}
    assert first == second
    users_app.start(version=8)
    again = with_client(users_app, FakeCanary(version="8"), talk)
    # The next candidate has others: all the same would have a chance of 2 ** -30.
    assert {n for n, met in again.items() if met == {"8"}} != {n for n, met in first.items() if met == {"7"}}


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_is_that_of_conversations(users_app: UsersApp, share: float):
    users_app.start(share=share)

    async def talk(client: httpx.AsyncClient) -> Counter[str]:
        replies = [
            await client.post("/v1/chat/completions", json=chat_body(f"user-{number}", f"Question {number}?"))
            for number in range(400)
        ]
        return Counter(reply.headers[POLICY_VERSION] for reply in replies)

    met = with_client(users_app, FakeCanary(), talk)
    # Within four standard deviations: wrong once in 16,000 draws of keys.
    assert abs(met["7"] - 400 * share) <= 4 * math.sqrt(400 * share * (1 - share))


def test_when_the_canary_ends_every_chat_reaches_the_champion_at_once(users_app: UsersApp):
    (user,) = users_of(users_app, candidates=True)

    async def work(client: httpx.AsyncClient) -> list[str]:
        met = [text_of(await client.post("/v1/chat/completions", json=chat_body(user)))]
        users_app.layout.canary_pointer.unlink()
        met.append(text_of(await client.post("/v1/chat/completions", json=chat_body(user))))
        users_app.start()
        met.append(text_of(await client.post("/v1/chat/completions", json=chat_body(user))))
        users_app.layout.canary_pointer.write_text("{}")
        met.append(text_of(await client.post("/v1/chat/completions", json=chat_body(user))))
        return met

    assert with_client(users_app, FakeCanary(), work) == [CANDIDATE_TEXT, CHAMPION_TEXT, CANDIDATE_TEXT, CHAMPION_TEXT]


def test_chats_that_end_with_an_assistant_message_reach_the_champion(users_app: UsersApp):
    to_go_on = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    for number in range(12):
        canary = FakeCanary()
        reply = ask(users_app, canary, chat_body(f"user-{number}", messages=to_go_on))
        assert canary.asked == []
        assert text_of(reply) == CHAMPION_TEXT


def test_users_with_a_personal_policy_never_reach_the_canary(tmp_path: Path):
    users_app = UsersApp(tmp_path, serve={"adapters": 2})
    users_app.start()
    (user,) = users_of(users_app, candidates=True)
    pseudonyms = Pseudonyms.load(users_app.layout.pseudonym_keys)
    pointer = users_app.layout.personal_pointer(owners(pseudonyms, tenant="default", user=user)[0])
    pointer.parent.mkdir()
    pointer.touch()
    canary = FakeCanary()
    assert text_of(ask(users_app, canary, chat_body(user))) == CHAMPION_TEXT
    assert canary.asked == []
