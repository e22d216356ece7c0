"""Personal policies over whole weights in a real engine: routing by user, and broken adapters and weights."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdpo_ray.capture.pairing_keys import owners
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.io.files import write_json
from sdpo_ray.personal.owners import owner_named
from sdpo_ray.personal.store import Attempt, conclude, remove, seal_adapter
from sdpo_ray.records import BASE_VERSION, Candidate, Snapshot, Verdict
from tests.support.adapter_serving import (
    LONG,
    UNUSED_VERSIONS,
    always_answering,
    ask_policy,
    assert_sampled_from,
    deploy,
    recorded_turn,
    serve_base,
    torn,
)
from tests.support.adapters import ADAPTER, adapter_release, personal
from tests.support.paths import CHECKPOINT
from tests.support.serving import ReferencePolicy, Served, perturbed, point, release_of

pytestmark = pytest.mark.integration

EMPTY_SNAPSHOT = Snapshot(
    snapshot_id="", table_version=0, seed=0, rule="", interaction_ids=(), held_out_ids=(), path="", digest="",
    last_interaction_at_s=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def with_adapters(serve_http: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An application with whole weights and personal adapters over them."""
    yield from deploy(serve_http, tmp_path_factory.mktemp("with_adapters"), "with_adapters")


def missing(path: Path) -> None:
    (path / "model.safetensors").unlink()


def half_written(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(path / "model.safetensors")
        weights[name] = change(weights[name])
        save_file(weights, path / "model.safetensors")

    return harm


NORM = "model.norm.weight"

BROKEN_WEIGHTS = {
    "missing": (missing, "holds no safetensors file"),
    "half-written": (half_written, "is torn, or no safetensors file"),
    "another shape": (changed(NORM, lambda norm: norm[:-1].clone()), r"model\.norm\.weight is \(127,\), not \(128,\)"),
    "another precision": (changed(NORM, lambda norm: norm.half()), r"model\.norm\.weight is in F16, not in F32"),
    "not a number": (
        changed(NORM, lambda norm: norm * float("nan")),
        r"model\.norm\.weight holds what is not a number",
    ),
    "another number": (changed(NORM, lambda norm: norm * 1.000001), "its sha256 differs"),
}


@pytest.mark.parametrize(("harm", "why"), BROKEN_WEIGHTS.values(), ids=BROKEN_WEIGHTS)
def test_broken_whole_weights_are_refused_with_a_reason_and_the_old_ones_stay(
    with_adapters: Served, candidates: dict[int, Candidate], tmp_path: Path, harm: Any, why: str
):
    serve_base(with_adapters)
    shutil.copytree(candidates[2].path, tmp_path / "v9")
    harm(tmp_path / "v9")
    release = replace(adapter_release(candidates[2]), policy_version=next(UNUSED_VERSIONS), path=str(tmp_path / "v9"))
    if "sha256" not in why:
        release = replace(release, digests=())
    with always_answering(with_adapters):
        point(with_adapters.layout, release)
        headers = with_adapters.wait_for("x-sdpo-swap-error", f"v{release.policy_version}:")
    assert re.search(why, headers["x-sdpo-swap-error"])
    assert headers["x-sdpo-policy-version"] == "1"
    assert_sampled_from(CHECKPOINT, recorded_turn(with_adapters))


def owner_of(served: Served, user: str) -> str:
    pseudonyms = Pseudonyms.load(served.layout.pseudonym_keys)
    return owners(pseudonyms, tenant="default", user=user)[0]


def counted(served: Served, why: str) -> float:
    found = re.search(rf'sdpo_personal_total\{{outcome="{why}"\}} (\S+)', httpx.get(f"{served.url}/metrics").text)
    return float(found[1]) if found else 0.0


@pytest.fixture
def personal_served(with_adapters: Served, candidates: dict[int, Candidate]) -> Iterator[Served]:
    """The served base, with the first adapter for the user ann and the second for ben."""
    serve_base(with_adapters)
    for user, version in (("ann", 2), ("ben", 3)):
        owner = owner_of(with_adapters, user)
        write_json(with_adapters.layout.personal_pointer(owner), personal(candidates[version], owner))
    time.sleep(1.1)
    yield with_adapters
    shutil.rmtree(with_adapters.layout.personal)


def test_users_in_one_batch_are_answered_by_their_own_policies(
    personal_served: Served, candidates: dict[int, Candidate]
):
    with ThreadPoolExecutor(12) as pool:
        users = ["ann", "ben", "cas"] * 4
        asked = [pool.submit(ask_policy, personal_served, LONG, user=user, max_tokens=48) for user in users]
        ids = [each.result().headers["x-sdpo-turn-id"] for each in asked]
    turns = personal_served.turns()
    expected = {"ann": candidates[2].path, "ben": candidates[3].path, "cas": str(CHECKPOINT)}
    references = {user: ReferencePolicy(Path(path)) for user, path in expected.items()}
    for user, turn_id in zip(users, ids, strict=True):
        turn = turns[turn_id]
        assert references[user].of_response(turn) == pytest.approx(turn.response_logprobs, abs=2e-3)
        assert bool(turn.adapter) == (user != "cas")
        assert [span.policy_version for span in turn.version_spans] == [1]


def test_a_personal_policy_is_stale_as_soon_as_another_shared_policy_is_served(personal_served: Served, tmp_path: Path):
    path = perturbed(CHECKPOINT, tmp_path / "v5", seed=5)
    assert recorded_turn(personal_served, user="ann", content=LONG).adapter
    before = counted(personal_served, "stale")
    point(personal_served.layout, release_of(path, 5))
    personal_served.wait_for("x-sdpo-policy-version", "5")
    turn = recorded_turn(personal_served, user="ann", content=LONG)
    assert (turn.adapter, turn.policy_version) == ("", 5)
    assert_sampled_from(path, turn)
    assert counted(personal_served, "stale") == before + 1
    serve_base(personal_served)
    turn = recorded_turn(personal_served, user="ann", content=LONG)
    assert turn.adapter


def test_a_broken_personal_policy_is_counted_and_the_shared_one_answers(
    personal_served: Served, candidates: dict[int, Candidate], tmp_path: Path
):
    owner = owner_of(personal_served, "dan")
    pointer = personal_served.layout.personal_pointer(owner)
    shutil.copytree(f"{candidates[2].path}/{ADAPTER}", tmp_path / ADAPTER)
    torn(tmp_path / ADAPTER)
    for number, (why, write) in enumerate(
        {
            "refused": lambda: write_json(pointer, personal(candidates[2], owner, adapter=str(tmp_path / ADAPTER))),
            "unreadable": lambda: pointer.write_text("{"),
            "absent": pointer.unlink,
        }.items()
    ):
        write()
        time.sleep(1.1)
        before = counted(personal_served, why)
        turn = recorded_turn(personal_served, user="dan")
        assert (turn.adapter, number) == ("", number)
        assert_sampled_from(CHECKPOINT, turn)
        assert counted(personal_served, why) == before + 1


def test_an_adapter_whose_files_are_deleted_keeps_answering_from_memory(
    personal_served: Served, candidates: dict[int, Candidate], tmp_path: Path
):
    owner = owner_of(personal_served, "eve")
    shutil.copytree(f"{candidates[3].path}/{ADAPTER}", tmp_path / ADAPTER)
    write_json(
        personal_served.layout.personal_pointer(owner),
        personal(candidates[3], owner, adapter=str(tmp_path / ADAPTER), name="eve@p1"),
    )
    assert recorded_turn(personal_served, user="eve").adapter == "eve@p1"
    shutil.rmtree(tmp_path / ADAPTER)
    # Other adapters take the engine's two slots, and this one is loaded again.
    for user in ("ann", "ben"):
        assert recorded_turn(personal_served, user=user).adapter
    turn = recorded_turn(personal_served, user="eve")
    assert turn.adapter == "eve@p1"
    assert_sampled_from(candidates[3].path, turn)


def test_log_probs_of_a_prompt_and_a_swap_of_whole_weights_work_beside_adapters(
    personal_served: Served, tmp_path: Path
):
    path = perturbed(CHECKPOINT, tmp_path / "v6", seed=6)
    assert_sampled_from(CHECKPOINT, recorded_turn(personal_served, content=LONG))
    point(personal_served.layout, release_of(path, 6))
    personal_served.wait_for("x-sdpo-policy-version", "6")
    assert_sampled_from(path, recorded_turn(personal_served, content=LONG))
    reply = ask_policy(
        personal_served, path="completions", prompt="The capital of France", max_tokens=1, echo=True, logprobs=1
    )
    assert reply.status == 200, reply.text
    serve_base(personal_served)
    assert_sampled_from(CHECKPOINT, recorded_turn(personal_served, content=LONG))


def test_a_published_personal_policy_answers_its_owner_until_it_is_removed(
    personal_served: Served, candidates: dict[int, Candidate]
):
    layout = personal_served.layout
    owner = owner_named(layout, tenant="default", user="dora", whole_tenant=False).digest
    policy = seal_adapter(layout, owner, candidates[2])
    attempt = Attempt(
        owner=owner,
        version=1,
        base_version=BASE_VERSION,
        snapshot=EMPTY_SNAPSHOT,
        verdict=Verdict.PROMOTE,
        reasons=(),
        name=policy.name,
        ended_at_s=0.0,
    )
    conclude(layout, attempt, policy)
    time.sleep(1.1)
    turn = recorded_turn(personal_served, user="dora", content=LONG)
    assert turn.adapter == policy.name
    assert_sampled_from(candidates[2].path, turn)
    assert remove(layout, owner)
    time.sleep(1.1)
    turn = recorded_turn(personal_served, user="dora", content=LONG)
    assert turn.adapter == ""
    assert_sampled_from(CHECKPOINT, turn)
