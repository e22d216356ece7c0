"""One simulated client: the user names that it sends."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any

from sdpo_ray.config import Run, ServeConfig, SimulateConfig
from sdpo_ray.simulate.http_clients import SimulatedClient, TrafficStats
from sdpo_ray.simulate.users import persona_of


class Completions:
    """OpenAI's client as far as a seat uses it; answers everything with one word."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def create(self, **request: Any) -> Any:
        self.asked.append(request)
        message = SimpleNamespace(content="Paris.")
        return SimpleNamespace(parse=lambda: SimpleNamespace(choices=[SimpleNamespace(message=message)]), headers={})


def talk(people: int, conversations: int) -> list[dict[str, Any]]:
    completions = Completions()
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(with_raw_response=completions)))
    run = Run(serve=ServeConfig(), simulate=SimulateConfig(people=people, think_s=1e-6, stream_share=0.0))
    seat = SimulatedClient(client, run, persona_of("concise"), random.Random(5), TrafficStats())

    async def sit() -> None:
        for _ in range(conversations):
            await seat.talk()

    asyncio.run(sit())
    return completions.asked


def test_a_conversation_is_one_person_s_from_beginning_to_end() -> None:
    asked = talk(people=8, conversations=40)
    first, second = asked[::2], asked[1::2]
    assert [len(request["messages"]) for request in asked] == [1, 3] * 40
    assert [request["user"] for request in first] == [request["user"] for request in second]
    assert {request["user"] for request in asked} == {f"person-{number}" for number in range(8)}


def test_one_person_may_be_everybody() -> None:
    assert {request["user"] for request in talk(people=1, conversations=3)} == {"person-0"}
