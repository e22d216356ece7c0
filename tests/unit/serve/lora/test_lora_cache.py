"""Which adapters are in an engine, and who is answered by which; with an engine that does what a test says."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.errors import DataError, SwapError
from sdpo_ray.records import Candidate, Release
from serve.lora import validation
from serve.lora.lora_cache import CacheFull, LoRACache
from serve.lora.lora_swapper import LoRASwapper
from serve.request_context import ChatContext, LoadedAdapter, RequestContext
from serve.weights import checkpoint_io
from tests.support.adapters import ADAPTER, adapted, adapter_release, rewrite
from tests.support.builders import tiny_policy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("base"), tied=True)


@pytest.fixture(scope="module")
def candidates(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Candidate]:
    folder = tmp_path_factory.mktemp("candidates")
    return [adapted(base, folder / f"v{version}", version=version, seed=version) for version in (1, 2, 3)]


class FakeEngine:
    """Says what each adapter's fingerprint promises, unless its name is among the `wrong`."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.promised = {f"{each.path}/{ADAPTER}": each.fingerprint.logprobs for each in candidates}
        self.own: tuple[float, ...] = ()
        self.wrong: set[str] = set()
        self.loaded: dict[str, int] = {}
        self.added: list[int] = []
        self.in_use: set[str] = set()

    async def add_adapter(self, adapter: LoadedAdapter) -> None:
        assert adapter.number not in self.added
        self.added.append(adapter.number)
        self.loaded[adapter.name] = adapter.number

    async def remove_adapter(self, adapter: LoadedAdapter) -> None:
        assert self.loaded.pop(adapter.name) == adapter.number

    def adapters_in_use(self) -> set[str]:
        return self.in_use

    async def logprobs(self, token_ids: tuple[int, ...], adapter: LoadedAdapter | None = None) -> tuple[float, ...]:
        if adapter is None:
            return self.own
        return tuple(each - (adapter.name in self.wrong) for each in self.promised[adapter.path])


def book_of(engine: FakeEngine, base: Path, *, slots: int = 2) -> LoRACache:
    return LoRACache(engine, checkpoint_io.headers(base), slots=slots, max_rank=8, dtype="float32")


def chat() -> ChatContext:
    return ChatContext(
        context=RequestContext(path="/v1/chat/completions", request_id="r"), request=None, recorded=False
    )


Get = Callable[[LoRACache, int], Awaitable[LoadedAdapter]]


@pytest.fixture
def get(candidates: list[Candidate]) -> Get:
    async def getting(cache: LoRACache, which: int, **more: str) -> LoadedAdapter:
        candidate = candidates[which]
        name = more.get("name", f"a{which}")
        return await cache.get(name, f"{candidate.path}/{ADAPTER}", candidate.fingerprint)

    return getting


def test_an_adapter_is_loaded_once_under_a_number_that_is_never_used_again(
    base: Path, candidates: list[Candidate], get: Get
):
    async def run() -> None:
        engine = FakeEngine(candidates)
        cache = book_of(engine, base)
        first, again = await asyncio.gather(get(cache, 0), get(cache, 0))
        assert first is again
        assert await cache.remove(first)
        assert engine.loaded == {}
        assert (await get(cache, 0)).number == 2

    asyncio.run(run())


def test_an_adapter_that_does_not_verify_is_taken_out_again(base: Path, candidates: list[Candidate], get: Get):
    async def run() -> None:
        engine = FakeEngine(candidates)
        engine.wrong = {"a1"}
        with pytest.raises(SwapError, match=r"a1 was loaded and taken out: log-probs differ .* by 1\.0000 nats"):
            await get(book_of(engine, base), 1)
        assert engine.loaded == {}

    asyncio.run(run())


def test_a_name_never_means_other_weights(base: Path, candidates: list[Candidate]):
    async def run() -> None:
        cache = book_of(FakeEngine(candidates), base)
        for each, refused in zip(candidates[:2], (False, True), strict=True):
            asked = cache.get("one", f"{each.path}/{ADAPTER}", each.fingerprint)
            if refused:
                with pytest.raises(SwapError, match="one already means the weights at"):
                    await asked
            else:
                await asked

    asyncio.run(run())


def test_the_least_recently_used_makes_room_and_none_that_is_in_use(
    base: Path, candidates: list[Candidate], get: Get, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(validation, "CACHED", 0)

    async def run() -> None:
        engine = FakeEngine(candidates)
        cache = book_of(engine, base, slots=2)
        await get(cache, 0)
        await get(cache, 1)
        await get(cache, 0)
        await get(cache, 2)
        assert set(engine.loaded) == {"a0", "a2"}
        engine.in_use = {"a0"}
        with cache.pinned(await get(cache, 2)):
            with pytest.raises(CacheFull):
                await get(cache, 1)
            assert set(engine.loaded) == {"a0", "a2"}
        await get(cache, 1)
        assert set(engine.loaded) == {"a0", "a1"}

    asyncio.run(run())


def test_new_requests_move_at_once_and_the_old_adapter_is_removed_when_unused(
    base: Path, candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve.lora.lora_swapper._RETIRE_POLL_S", 0.001)

    async def run() -> None:
        engine = FakeEngine(candidates)
        cache = book_of(engine, base)
        zero = Release(policy_version=0, path=str(base), previous_version=None, fingerprint=candidates[0].fingerprint)
        swapper = LoRASwapper(engine, cache, zero, base=base, dtype="float32")
        begun = chat()
        async with swapper.select(begun) as adapter:
            assert adapter is None
            assert (begun.release_version, begun.context.policy_version) == (0, 0)
        begun.admitted = True
        await swapper.to(adapter_release(candidates[0]))
        async with swapper.select(begun) as adapter:
            assert (adapter, begun.release_version) == (None, 0)
        new = chat()
        async with swapper.select(new) as adapter:
            assert adapter is not None
            assert (adapter.name, new.release_version) == ("policy@v1", 1)
        engine.in_use = {"policy@v1"}
        await swapper.to(adapter_release(candidates[1]))
        await asyncio.sleep(0.01)
        assert set(engine.loaded) == {"policy@v1", "policy@v2"}
        engine.in_use = set()
        await asyncio.sleep(0.01)
        assert set(engine.loaded) == {"policy@v2"}

    asyncio.run(run())


def test_a_rollback_to_an_adapter_that_is_leaving_keeps_it(
    base: Path, candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve.lora.lora_swapper._RETIRE_POLL_S", 0.001)

    async def run() -> None:
        engine = FakeEngine(candidates)
        cache = book_of(engine, base)
        zero = Release(policy_version=0, path=str(base), previous_version=None, fingerprint=candidates[0].fingerprint)
        swapper = LoRASwapper(engine, cache, zero, base=base, dtype="float32")
        engine.in_use = {"policy@v1"}
        for version in (1, 2, 1):
            await swapper.to(adapter_release(candidates[version - 1]))
        engine.in_use = set()
        await asyncio.sleep(0.02)
        assert set(engine.loaded) == {"policy@v1"}
        async with swapper.select(None) as adapter:
            assert adapter is not None
            assert adapter.number == engine.loaded[adapter.name]

    asyncio.run(run())


def test_a_release_that_is_no_adapter_over_the_base_is_refused(base: Path, candidates: list[Candidate], tmp_path: Path):
    async def run() -> None:
        engine = FakeEngine(candidates)
        zero = Release(policy_version=0, path=str(base), previous_version=None, fingerprint=candidates[0].fingerprint)
        release = adapter_release(candidates[0])
        swapper = LoRASwapper(engine, book_of(engine, base), zero, base=base, dtype="float32")
        with pytest.raises(SwapError, match="no adapter over"):
            await swapper.to(replace(release, adapter=""))
        with pytest.raises(SwapError, match="its adapter cannot be read"):
            await swapper.to(replace(release, adapter=str(tmp_path)))
        other = LoRASwapper(engine, book_of(engine, base), zero, base=tmp_path, dtype="float32")
        with pytest.raises(SwapError, match="not over the run's base"):
            await other.to(release)
        engine.own = tuple(each + 1 for each in zero.fingerprint.logprobs)
        with pytest.raises(SwapError, match="log-probs differ"):
            await swapper.to(zero)
        assert swapper.serving == zero

    asyncio.run(run())


def test_an_adapter_is_checked_against_the_layers_of_its_base(base: Path, tmp_path: Path):
    known = checkpoint_io.headers(base)
    folder = Path(adapted(base, tmp_path / "v1", version=1, seed=1).path) / ADAPTER
    assert validation.check(folder, known, max_rank=4).r == 4
    with pytest.raises(DataError, match=r"its rank is 4, and serve\.max_lora_rank is 2"):
        validation.check(folder, known, max_rank=2)
    rewrite(
        folder,
        lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": tensors[min(tensors)].clone()}),
    )
    with pytest.raises(DataError, match=r"lm_head.* belongs to no linear layer"):
        validation.check(folder, known, max_rank=4)


def test_lora_targets_are_the_bodys_linear_layers_without_the_output_layer(base: Path):
    layers = validation.linear_layers(checkpoint_io.headers(base))
    assert layers == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
