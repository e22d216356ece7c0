"""Which requests a personal policy answers, and why the shared policy answers the others."""

import asyncio
from pathlib import Path

import pytest

from sdpo_ray.capture.chat_request import ChatRequest
from sdpo_ray.capture.pairing_keys import owner_digest, owners
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.errors import SwapError
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, FileDigest, Fingerprint, PersonalPolicy
from serve.lora.lora_cache import CacheFull, LoRACache
from serve.lora.personal_policies import RECHECK_S, PersonalPolicies
from serve.request_context import ChatContext, LoadedAdapter, RequestContext


class FakeBook(LoRACache):
    """Loads anything, except the names it has something against."""

    def __init__(self) -> None:
        self.against: dict[str, SwapError] = {}
        self.asked: list[str] = []
        self.held: list[str] = []

    async def get(
        self, name: str, path: str, fingerprint: Fingerprint, digests: tuple[FileDigest, ...] = ()
    ) -> LoadedAdapter:
        self.asked.append(name)
        if name in self.against:
            raise self.against[name]
        return LoadedAdapter(name=name, number=len(self.asked), path=path)

    def pin(self, adapter: LoadedAdapter) -> None:
        self.held.append(adapter.name)

    def unpin(self, adapter: LoadedAdapter) -> None:
        self.held.remove(adapter.name)


class Scene:
    """One run with version 7 served, and a clock that a test moves."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.keys = Pseudonyms.load(self.layout.pseudonym_keys)
        self.cache = FakeBook()
        self.served = 7
        self.now = 0.0
        self.personal = PersonalPolicies(
            self.layout, lambda: self.keys, self.cache, lambda: self.served, clock=lambda: self.now
        )

    def owner(self, user: str = "ann", tenant: str = "t") -> str:
        return owners(self.keys, tenant=tenant, user=user)[0]

    def write(self, owner: str, *, name: str = "ann@1", base_version: int = 7, of: str | None = None) -> None:
        policy = PersonalPolicy(
            owner=of or owner,
            version=1,
            name=name,
            adapter=f"/adapters/{name}",
            base_version=base_version,
            fingerprint=Fingerprint(token_ids=(1, 2), logprobs=(-1.0,)),
            released_at_s=0.0,
        )
        write_json(self.layout.personal_pointer(owner), policy)

    def ask(self, user: str = "ann", tenant: str = "t") -> str:
        """Name of the adapter that a request is given."""
        return asyncio.run(self.asking(user, tenant))

    async def asking(self, user: str = "ann", tenant: str = "t") -> str:
        asked = ChatRequest(
            turn_id="x",
            tenant=tenant,
            user=user,
            conversation_id="",
            consent=Consent.TRAIN,
            messages=(),
            started_at_s=0.0,
        )
        chat = ChatContext(
            context=RequestContext(path="/", request_id="r", tenant=tenant), request=asked, recorded=True
        )
        async with self.personal.select(chat) as adapter:
            name = adapter.name if adapter is not None else ""
            assert chat.context.adapter == name
            assert self.cache.held == ([name] if name else [])
        assert self.cache.held == []
        return name


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_users_own_policy_comes_before_the_tenants_and_others_get_neither(scene: Scene):
    scene.write(scene.owner("ann"), name="ann@1")
    scene.write(owner_digest(scene.keys.pairing_key, tenant="t", pseudonym=""), name="tenant@1")
    assert [scene.ask("ann"), scene.ask("ben"), scene.ask("")] == ["ann@1", "tenant@1", "tenant@1"]
    assert scene.ask("ann", tenant="another") == ""
    assert scene.personal.counters.values == {"served": 3, "absent": 1}


def test_a_policy_learned_under_an_earlier_key_still_answers(scene: Scene):
    scene.write(scene.owner("ann"), name="ann@1")
    scene.keys = scene.keys.rotate()
    assert scene.ask("ann") == "ann@1"
    scene.write(scene.owner("ann"), name="ann@2")
    scene.now += RECHECK_S
    assert scene.ask("ann") == "ann@2"


def test_over_another_shared_policy_it_is_stale_and_not_even_asked_for(scene: Scene):
    scene.write(scene.owner(), base_version=6)
    assert scene.ask() == ""
    assert scene.cache.asked == []
    scene.served = 6
    assert scene.ask() == "ann@1"
    scene.served = 7
    assert scene.ask() == ""
    assert scene.personal.counters.values == {"stale": 2, "served": 1}


def test_the_tenants_policy_stands_in_for_a_stale_one_of_the_user(scene: Scene):
    scene.write(scene.owner(), base_version=6)
    scene.write(owner_digest(scene.keys.pairing_key, tenant="t", pseudonym=""), name="tenant@1")
    assert scene.ask() == "tenant@1"


def test_a_refused_policy_is_tried_once_until_its_pointer_is_written_again(scene: Scene):
    scene.write(scene.owner())
    scene.cache.against["ann@1"] = SwapError("torn")
    for _ in range(3):
        assert scene.ask() == ""
        scene.now += RECHECK_S
    assert scene.cache.asked == ["ann@1"]
    scene.write(scene.owner(), name="ann@2")
    assert scene.ask() == "ann@2"
    assert scene.personal.counters.values == {"refused": 3, "served": 1}


def test_where_all_adapters_are_busy_the_shared_policy_answers_and_the_next_request_tries_again(scene: Scene):
    scene.write(scene.owner())
    scene.cache.against["ann@1"] = CacheFull("full")
    assert scene.ask() == ""
    del scene.cache.against["ann@1"]
    assert scene.ask() == "ann@1"
    assert scene.personal.counters.values == {"cache_full": 1, "served": 1}


@pytest.mark.parametrize("content", ["{", "{}", "[]", "\x00"])
def test_a_malformed_pointer_leaves_the_shared_policy(scene: Scene, content: str):
    pointer = scene.layout.personal_pointer(scene.owner())
    pointer.parent.mkdir(parents=True)
    pointer.write_text(content)
    assert scene.ask() == ""
    assert scene.personal.counters.values == {"unreadable": 1}
    scene.write(scene.owner())
    scene.now += RECHECK_S
    assert scene.ask() == "ann@1"


def test_a_pointer_of_another_owner_is_not_followed(scene: Scene):
    scene.write(scene.owner(), of=scene.owner("ben"))
    assert scene.ask() == ""
    assert scene.personal.counters.values == {"unreadable": 1}


def test_a_pointer_is_looked_at_once_a_second_and_counts_no_more_when_it_is_gone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    import os

    looks = []
    stat = os.stat
    monkeypatch.setattr("sdpo_ray.io.watched_file.os.stat", lambda path: looks.append(path) or stat(path))
    scene.write(scene.owner())
    for _ in range(5):
        assert scene.ask() == "ann@1"
    assert len(looks) == 1
    scene.layout.personal_pointer(scene.owner()).unlink()
    assert scene.ask() == "ann@1"
    scene.now += RECHECK_S
    assert scene.ask() == ""


def test_the_rest_of_a_request_goes_on_with_the_policy_it_began_with(scene: Scene):
    scene.write(scene.owner())

    async def run() -> None:
        chat = ChatContext(context=RequestContext(path="/", request_id="r", tenant="t"), request=None, recorded=False)
        async with scene.personal.select(chat) as adapter:
            assert adapter is None
        chat.admitted = True
        scene.write(owner_digest(scene.keys.pairing_key, tenant="t", pseudonym=""), name="tenant@1")
        scene.now += RECHECK_S
        async with scene.personal.select(chat) as adapter:
            assert adapter is None

    asyncio.run(run())
