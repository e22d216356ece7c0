"""Shadow mode: the candidate answers copies of chats, and its answers are dropped."""

import asyncio
from pathlib import Path

import httpx

from sdpo_ray.headers import POLICY_VERSION
from sdpo_ray.records.run_events import ShadowResponse
from sdpo_ray.telemetry import read_events
from serve.canary.shadow import MAX_COPIES
from tests.support.canary import CHAMPION_TEXT, FakeCanary, UsersApp, chat_body, users_of, with_client
from tests.support.recorded_engine import text_of


def shadow_file(users_app: UsersApp) -> Path:
    (path,) = users_app.layout.canary_answers(7).glob("*.jsonl")
    return path


def test_a_shadow_answer_is_never_shown_and_only_its_numbers_are_kept(users_app: UsersApp):
    (user,) = users_of(users_app, candidates=True)
    users_app.start(mode="shadow")
    canary = FakeCanary()

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        reply = await client.post("/v1/chat/completions", json=chat_body(user, stream=True, n=2))
        while not users_app.counted:
            await asyncio.sleep(0.01)
        return reply

    reply = with_client(users_app, canary, work)
    assert (text_of(reply), reply.headers[POLICY_VERSION]) == (CHAMPION_TEXT, "0")
    ((request, headers, _),) = canary.asked
    assert (request.get("stream"), request["n"], headers["x-sdpo-consent"]) == (None, 1, "none")
    (event,) = read_events(shadow_file(users_app))
    assert isinstance(event, ShadowResponse)
    assert (event.tokens, event.error) == (7, "")
    assert 0 <= event.seconds < 60
    assert "Paris" not in shadow_file(users_app).read_text()
    assert users_app.counted == {"shadow.answered": 1}


def test_shadow_copies_delay_no_request_and_are_dropped_over_the_limit(users_app: UsersApp):
    users_app.start(mode="shadow")

    async def main() -> list[str]:
        canary = FakeCanary(waits=asyncio.Event())
        router = users_app.make(httpx.ASGITransport(app=canary))
        async with users_app.client() as client:
            received = []
            for number in range(60):
                reply = await client.post(
                    "/v1/chat/completions", json=chat_body(f"user-{number}", f"Question {number}?")
                )
                received.append(text_of(reply))
            assert router.counters.values["shadow.dropped"] > 0
            assert len(canary.asked) == MAX_COPIES
            assert canary.waits is not None
            canary.waits.set()
            while users_app.counted.get("shadow.answered", 0) < MAX_COPIES:
                await asyncio.sleep(0.01)
            return received

    assert asyncio.run(main()) == [CHAMPION_TEXT] * 60


def test_a_failed_shadow_copy_is_counted_and_not_shown(users_app: UsersApp):
    (user,) = users_of(users_app, candidates=True)
    users_app.start(mode="shadow")

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        reply = await client.post("/v1/chat/completions", json=chat_body(user))
        while not users_app.counted:
            await asyncio.sleep(0.01)
        return reply

    assert text_of(with_client(users_app, FakeCanary(status=500), work)) == CHAMPION_TEXT
    assert users_app.counted == {"shadow.failed": 1}
    (event,) = read_events(shadow_file(users_app))
    assert isinstance(event, ShadowResponse)
    assert (event.tokens, event.error) == (0, "status_500")
