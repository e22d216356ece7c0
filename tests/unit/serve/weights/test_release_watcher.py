"""What a replica starts on and follows, from files alone."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdpo_ray.errors import SwapError
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.release import point_at
from sdpo_ray.records import BASE_VERSION, Canary, Candidate, Fingerprint, Release
from serve.weights import release_watcher
from serve.weights.release_watcher import ReleasePointer, ReleaseWatcher, first_whole, start
from serve.weights.swapper import StallPhases

FINGERPRINT = Fingerprint(token_ids=(1, 2), logprobs=(-0.5,))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Versions 1, 2 and 3 were released one after the other; their weights are whole."""
    layout = Layout(tmp_path)
    for version in range(1, 4):
        path = tmp_path / f"weights-{version}"
        path.mkdir()
        save_file({"a": torch.ones(1)}, path / "model.safetensors")
        candidate = Candidate(
            policy_version=version, parent_version=BASE_VERSION, path=str(path), snapshot_id="", fingerprint=FINGERPRINT
        )
        point_at(layout, candidate)
    return layout


class FakeSwapper:
    """Refuses some versions."""

    def __init__(self, serving: Release, refuse: Iterable[int] = ()) -> None:
        self.serving = serving
        self.refuse = set(refuse)
        self.stall = StallPhases()
        self.broken = False
        self.tried: list[str] = []

    async def to(self, release: Release) -> None:
        await self._try("to", release)
        self.serving = release

    async def verify(self, release: Release) -> None:
        await self._try("verify", release)

    async def _try(self, how: str, release: Release) -> None:
        self.tried.append(f"{how} v{release.policy_version}")
        if release.policy_version in self.refuse:
            raise SwapError("not this one")


def versions(releases: Iterable[Release]) -> list[int]:
    return [each.policy_version for each in releases]


def test_a_replica_starts_on_the_pointer_then_on_what_was_served_before(layout: Layout):
    known = ReleasePointer(layout, "users").to_start_on()
    assert versions(known) == [3, 2, 1]
    swapper = FakeSwapper(known[0])
    asyncio.run(start(swapper, known, loaded=known[0]))
    assert swapper.tried == ["verify v3"]


def test_before_the_first_release_there_is_nothing_to_start_on(tmp_path: Path):
    assert ReleasePointer(Layout(tmp_path), "users").to_start_on() == []


def test_releases_that_name_each_other_as_the_one_before_are_each_tried_once(layout: Layout):
    one = ReleasePointer(layout, "users").to_start_on()[1]
    write_json(layout.release(2), replace(one, previous_version=3))
    assert versions(ReleasePointer(layout, "users").to_start_on()) == [3, 2, 1]


def test_a_replica_comes_up_on_the_release_before_one_that_is_gone_or_wrong(layout: Layout):
    known = ReleasePointer(layout, "users").to_start_on()
    (Path(known[0].path) / "model.safetensors").unlink()
    loaded = first_whole(known)
    assert loaded == known[1]
    swapper = FakeSwapper(known[1], refuse={3, 2})
    asyncio.run(start(swapper, known, loaded=loaded))
    assert swapper.tried == ["to v3", "verify v2", "to v1"]
    assert swapper.serving == known[2]


def test_a_replica_that_can_serve_nothing_says_so(layout: Layout):
    known = ReleasePointer(layout, "users").to_start_on()
    with pytest.raises(SwapError, match="no known release checks out: not this one"):
        asyncio.run(start(FakeSwapper(known[0], refuse={1, 2, 3}), known, loaded=known[0]))


def test_the_evaluator_follows_a_pointer_of_its_own(layout: Layout):
    pointer = ReleasePointer(layout, "evaluator")
    assert pointer.read() is None
    release = ReleasePointer(layout, "users").to_start_on()[1]
    write_json(layout.eval_pointer, replace(release, previous_version=None))
    assert versions(pointer.to_start_on()) == [2, 1]


def test_a_canary_serves_the_candidate_and_without_one_the_users_release(layout: Layout):
    pointer = ReleasePointer(layout, "canary")
    assert versions(pointer.to_start_on()) == [3, 2, 1]
    before = pointer.stamp()
    candidate = replace(ReleasePointer(layout, "users").to_start_on()[0], policy_version=4, previous_version=3)
    canary = Canary(candidate=candidate, champion_version=3, mode="canary", share=0.1, started_at_s=0.0)
    write_json(layout.canary_pointer, canary)
    assert pointer.stamp() != before
    assert versions(pointer.to_start_on()) == [4, 3, 2, 1]
    layout.canary_pointer.unlink()
    assert pointer.read() == ReleasePointer(layout, "users").read()


def test_a_follower_tries_a_release_once_and_says_why_it_is_not_served(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(release_watcher, "POLL_S", 0.001)

    async def until(follower: ReleaseWatcher, refused: str | None) -> None:
        async with asyncio.timeout(5):
            while follower.refused != refused:
                await asyncio.sleep(0.001)

    async def run() -> None:
        known = ReleasePointer(layout, "users").to_start_on()
        swapper = FakeSwapper(known[1], refuse={3})
        follower = ReleaseWatcher(ReleasePointer(layout, "users"), swapper)
        following = asyncio.ensure_future(follower.follow())
        await until(follower, "v3: not this one")
        await asyncio.sleep(0.01)
        assert swapper.tried == ["to v3"]
        write_json(layout.release_pointer, known[2])
        await until(follower, None)
        assert swapper.serving == known[2]
        layout.release_pointer.write_text("{")
        async with asyncio.timeout(5):
            while "is not a Release" not in (follower.refused or ""):
                await asyncio.sleep(0.001)
        assert swapper.serving == known[2]
        following.cancel()

    asyncio.run(run())
