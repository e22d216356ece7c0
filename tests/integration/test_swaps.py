"""Releases as adapters and personal policies in real engines: who answers whom, and what a broken adapter can do."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdpo_ray.capture.pairing_keys import owners
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal.owners import owner_named
from sdpo_ray.personal.store import Attempt, conclude, remove, seal_adapter
from sdpo_ray.records import BASE_VERSION, Candidate, Snapshot, Turn, Verdict
from tests.support.adapters import ADAPTER, CONFIG, WEIGHTS, adapted, adapter_release, personal, rewrite
from tests.support.paths import CHECKPOINT
from tests.support.serving import ReferencePolicy, Served, perturbed, point, release_of

pytestmark = pytest.mark.integration
QUESTION = "What is the capital of France?"
UNUSED = count(100)
"""Versions of releases that are refused: each refusal is told from the one before."""
LONG = "Tell me of the seas and the rivers. " * 12
"""More than two of the engine's cache blocks of 128 tokens."""
NOTHING = Snapshot(
    snapshot_id="", table_version=0, seed=0, rule="", interaction_ids=(), held_out_ids=(), path="", digest="",
    last_interaction_at_s=0.0,
)  # fmt: skip


def deployed(url: str, root: Path, name: str, *overrides: str) -> Iterator[Served]:
    """An application of its own beside the others."""
    from ray import serve

    from sdpo_ray.cli.options import LAPTOP
    from serve.app import Arguments, build

    said = (f"root={root}", f"policy.base={CHECKPOINT}", "serve.adapters=2", "serve.max_lora_rank=8", *overrides)
    serve.run(build(Arguments(run_file=str(LAPTOP), overrides=list(said))), name=name, route_prefix=f"/{name}")
    yield Served(url=f"{url}/{name}", layout=Layout(root), base=CHECKPOINT, overrides=said)
    serve.delete(name)


@pytest.fixture(scope="module")
def by_adapter(serve_http: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Releases reach this one as adapters over the base."""
    root = tmp_path_factory.mktemp("by_adapter")
    yield from deployed(serve_http, root, "by_adapter", 'serve.swap="adapter"', "distill.lora.rank=4")


@pytest.fixture(scope="module")
def with_people(serve_http: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Whole weights, and adapters of single users over them."""
    yield from deployed(serve_http, tmp_path_factory.mktemp("with_people"), "with_people")


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Candidate]:
    """Adapters over the base, which differ by more than noise."""
    folder = tmp_path_factory.mktemp("candidates")
    return {version: adapted(CHECKPOINT, folder / f"v{version}", version=version, seed=version) for version in (2, 3)}


@dataclass(frozen=True, slots=True)
class Said:
    status: int
    headers: httpx.Headers
    text: str


def ask(served: Served, content: str = QUESTION, *, path: str = "chat/completions", **more: Any) -> Said:
    body = {"model": "policy", "max_tokens": 24, "temperature": 1.0} | more
    if path == "chat/completions":
        body |= {"messages": [{"role": "user", "content": content}]}
    reply = httpx.post(f"{served.url}/v1/{path}", json=body, timeout=60)
    return Said(reply.status_code, reply.headers, reply.text)


def turn_of(served: Served, **more: Any) -> Turn:
    said = ask(served, **more)
    assert said.status == 200, said.text
    return served.turns()[said.headers["x-sdpo-turn-id"]]


def assert_said_by(path: str | Path, turn: Turn) -> None:
    assert ReferencePolicy(Path(path)).of_response(turn) == pytest.approx(turn.response_logprobs, abs=2e-3)


def to_base(served: Served) -> None:
    served.layout.release_pointer.write_bytes(served.layout.release(BASE_VERSION).read_bytes())
    served.wait_for("x-sdpo-policy-version", "1")


def stream(served: Served, began: threading.Event) -> str:
    """A long stream; the id of its turn."""
    body = {
        "model": "policy",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=60) as reply:
        for line in reply.iter_lines():
            if '"content"' in line:
                began.set()
        assert line == "" or line.startswith("data: [DONE]")
        return str(reply.headers["x-sdpo-turn-id"])


def test_new_requests_move_to_the_new_adapter_while_older_ones_finish_on_theirs(
    by_adapter: Served, candidates: dict[int, Candidate]
):
    to_base(by_adapter)
    point(by_adapter.layout, adapter_release(candidates[2]))
    by_adapter.wait_for("x-sdpo-policy-version", "2")
    began = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(stream, by_adapter, began)
        assert began.wait(30)
        point(by_adapter.layout, adapter_release(candidates[3]))
        headers = by_adapter.wait_for("x-sdpo-policy-version", "3")
        newer = turn_of(by_adapter)
        overtaken = not older.done()
        turn_id = older.result()
    old = by_adapter.turns()[turn_id]
    assert overtaken, "the older answer ended before the newer one"
    assert headers["x-sdpo-stall-s"] == "0.000"
    assert [span.policy_version for span in old.version_spans] == [2]
    assert [span.policy_version for span in newer.version_spans] == [3]
    assert_said_by(candidates[2].path, old)
    assert_said_by(candidates[3].path, newer)


def test_a_long_prompt_that_two_adapters_share_is_not_shared_in_the_cache(
    by_adapter: Served, candidates: dict[int, Candidate]
):
    for version in (2, 3):
        point(by_adapter.layout, adapter_release(candidates[version]))
        by_adapter.wait_for("x-sdpo-policy-version", str(version))
        assert_said_by(candidates[version].path, turn_of(by_adapter, content=LONG))
    to_base(by_adapter)
    assert_said_by(CHECKPOINT, turn_of(by_adapter, content=LONG))


def test_names_of_adapters_are_nobodys_model(by_adapter: Served, candidates: dict[int, Candidate]):
    point(by_adapter.layout, adapter_release(candidates[2]))
    by_adapter.wait_for("x-sdpo-policy-version", "2")
    assert ask(by_adapter, model="policy@v2").status == 404
    listed = httpx.get(f"{by_adapter.url}/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["policy"]


def test_log_probs_of_a_prompt_are_the_adapters_and_leave_the_engine_alive(
    by_adapter: Served, candidates: dict[int, Candidate]
):
    point(by_adapter.layout, adapter_release(candidates[2]))
    by_adapter.wait_for("x-sdpo-policy-version", "2")
    said = ask(by_adapter, path="completions", prompt="The capital of France", max_tokens=1, echo=True, logprobs=1)
    assert said.status == 200, said.text
    choice = json.loads(said.text)["choices"][0]["logprobs"]
    from sdpo_ray.chat import ChatFormat

    ids = ChatFormat(CHECKPOINT).text_ids("The capital of France")
    expected = ReferencePolicy(Path(candidates[2].path)).logprobs(ids)
    assert choice["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=2e-3)
    assert ask(by_adapter).status == 200


@contextmanager
def always_answering(served: Served) -> Iterator[None]:
    """While it lasts people ask, and every one of them is answered."""
    stop = threading.Event()

    def talk() -> list[int]:
        said = []
        while not stop.is_set():
            said.append(ask(served, max_tokens=4).status)
        return said

    with ThreadPoolExecutor(2) as pool:
        talking = [pool.submit(talk) for _ in range(2)]
        try:
            yield
        finally:
            stop.set()
        assert {status for each in talking for status in each.result()} == {200}


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def torn(folder: Path) -> None:
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])


def one_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def not_a_number(folder: Path) -> None:
    rewrite(folder, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(float("nan")))


def narrow(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = min(tensors)
        tensors[name] = tensors[name][:, :-1].contiguous()

    rewrite(folder, change)


def of_numbers(folder: Path) -> None:
    import torch

    rewrite(folder, lambda tensors: tensors.update({min(tensors): tensors[min(tensors)].to(torch.int32)}))


def over_another_base(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere"}))


HARMS = {
    "no config": (without(CONFIG), True, "adapter_config.json"),
    "no weights": (without(WEIGHTS), True, "holds no safetensors file"),
    "torn": (torn, True, "its header speaks of"),
    "one bit": (one_bit, True, "its sha256 differs"),
    "one bit, without digests": (one_bit, False, ""),
    "not a number": (not_a_number, False, "not a number"),
    "another shape": (narrow, False, r"not \("),
    "another kind of number": (of_numbers, False, "I32"),
    "another base": (over_another_base, True, "belongs over"),
}


@pytest.mark.parametrize(("harm", "digests", "why"), HARMS.values(), ids=HARMS)
def test_a_broken_adapter_is_refused_by_name_and_the_old_one_goes_on(
    by_adapter: Served, candidates: dict[int, Candidate], tmp_path: Path, harm: Any, digests: bool, why: str
):
    point(by_adapter.layout, adapter_release(candidates[2]))
    by_adapter.wait_for("x-sdpo-policy-version", "2")
    shutil.copytree(candidates[3].path, tmp_path / "v9")
    harm(tmp_path / "v9" / ADAPTER)
    broken = replace(
        adapter_release(candidates[3]), policy_version=next(UNUSED), adapter=str(tmp_path / "v9" / ADAPTER)
    )
    if not digests:
        broken = replace(broken, digests=())
    if not why:
        # A single bit of one small weight is nothing a policy's words would show; the fingerprint is what they are.
        broken = replace(broken, fingerprint=candidates[2].fingerprint)
        why = "log-probs differ"
    with always_answering(by_adapter):
        point(by_adapter.layout, broken)
        headers = by_adapter.wait_for("x-sdpo-swap-error", f"v{broken.policy_version}:")
    assert re.search(why, headers["x-sdpo-swap-error"])
    assert headers["x-sdpo-policy-version"] == "2"
    assert_said_by(candidates[2].path, turn_of(by_adapter))


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
WHOLE_HARMS = {
    "missing": (missing, "holds no safetensors file"),
    "half-written": (half_written, "its header speaks of"),
    "another shape": (changed(NORM, lambda norm: norm[:-1].clone()), r"model\.norm\.weight is \(127,\), not \(128,\)"),
    "another precision": (changed(NORM, lambda norm: norm.half()), r"model\.norm\.weight is in F16, not in F32"),
    "not a number": (
        changed(NORM, lambda norm: norm * float("nan")),
        r"model\.norm\.weight holds what is not a number",
    ),
    "another number": (changed(NORM, lambda norm: norm * 1.000001), "its sha256 differs"),
}


@pytest.mark.parametrize(("harm", "why"), WHOLE_HARMS.values(), ids=WHOLE_HARMS)
def test_broken_whole_weights_are_refused_by_name_and_the_old_ones_go_on(
    with_people: Served, candidates: dict[int, Candidate], tmp_path: Path, harm: Any, why: str
):
    to_base(with_people)
    shutil.copytree(candidates[2].path, tmp_path / "v9")
    harm(tmp_path / "v9")
    release = replace(adapter_release(candidates[2]), policy_version=next(UNUSED), path=str(tmp_path / "v9"))
    if "sha256" not in why:
        release = replace(release, digests=())
    with always_answering(with_people):
        point(with_people.layout, release)
        headers = with_people.wait_for("x-sdpo-swap-error", f"v{release.policy_version}:")
    assert re.search(why, headers["x-sdpo-swap-error"])
    assert headers["x-sdpo-policy-version"] == "1"
    assert_said_by(CHECKPOINT, turn_of(with_people))


def owner_of(served: Served, user: str) -> str:
    pseudonyms = Pseudonyms.load(served.layout.pseudonym_keys)
    return owners(pseudonyms, tenant="default", user=user)[0]


def counted(served: Served, why: str) -> float:
    found = re.search(rf'sdpo_personal_total\{{outcome="{why}"\}} (\S+)', httpx.get(f"{served.url}/metrics").text)
    return float(found[1]) if found else 0.0


@pytest.fixture
def people(with_people: Served, candidates: dict[int, Candidate]) -> Iterator[Served]:
    """Ann has the first adapter, Ben the second; both over the base, which is served."""
    to_base(with_people)
    for user, version in (("ann", 2), ("ben", 3)):
        owner = owner_of(with_people, user)
        write_json(with_people.layout.personal_pointer(owner), personal(candidates[version], owner))
    time.sleep(1.1)
    yield with_people
    shutil.rmtree(with_people.layout.personal)


def test_everyone_in_one_batch_is_answered_by_their_own_policy(people: Served, candidates: dict[int, Candidate]):
    with ThreadPoolExecutor(12) as pool:
        users = ["ann", "ben", "cas"] * 4
        asked = [pool.submit(ask, people, LONG, user=user, max_tokens=48) for user in users]
        ids = [each.result().headers["x-sdpo-turn-id"] for each in asked]
    turns = people.turns()
    expected = {"ann": candidates[2].path, "ben": candidates[3].path, "cas": str(CHECKPOINT)}
    references = {user: ReferencePolicy(Path(path)) for user, path in expected.items()}
    for user, turn_id in zip(users, ids, strict=True):
        turn = turns[turn_id]
        assert references[user].of_response(turn) == pytest.approx(turn.response_logprobs, abs=2e-3)
        assert bool(turn.adapter) == (user != "cas")
        assert [span.policy_version for span in turn.version_spans] == [1]


def test_a_personal_policy_is_stale_from_the_moment_that_another_policy_is_served_beneath_it(
    people: Served, tmp_path: Path
):
    path = perturbed(CHECKPOINT, tmp_path / "v5", seed=5)
    assert turn_of(people, user="ann", content=LONG).adapter
    before = counted(people, "stale")
    point(people.layout, release_of(path, 5))
    people.wait_for("x-sdpo-policy-version", "5")
    turn = turn_of(people, user="ann", content=LONG)
    assert (turn.adapter, turn.policy_version) == ("", 5)
    assert_said_by(path, turn)
    assert counted(people, "stale") == before + 1
    to_base(people)
    turn = turn_of(people, user="ann", content=LONG)
    assert turn.adapter


def test_what_is_wrong_with_a_personal_policy_costs_nobody_an_answer(
    people: Served, candidates: dict[int, Candidate], tmp_path: Path
):
    owner = owner_of(people, "dan")
    pointer = people.layout.personal_pointer(owner)
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
        before = counted(people, why)
        turn = turn_of(people, user="dan")
        assert (turn.adapter, number) == ("", number)
        assert_said_by(CHECKPOINT, turn)
        assert counted(people, why) == before + 1


def test_an_adapter_whose_files_are_gone_goes_on_answering_from_memory(
    people: Served, candidates: dict[int, Candidate], tmp_path: Path
):
    owner = owner_of(people, "eve")
    shutil.copytree(f"{candidates[3].path}/{ADAPTER}", tmp_path / ADAPTER)
    write_json(
        people.layout.personal_pointer(owner),
        personal(candidates[3], owner, adapter=str(tmp_path / ADAPTER), name="eve@p1"),
    )
    assert turn_of(people, user="eve").adapter == "eve@p1"
    shutil.rmtree(tmp_path / ADAPTER)
    # Others take its place in the batch's two slots, and it comes back into one.
    for user in ("ann", "ben"):
        assert turn_of(people, user=user).adapter
    turn = turn_of(people, user="eve")
    assert turn.adapter == "eve@p1"
    assert_said_by(candidates[3].path, turn)


def test_log_probs_of_a_prompt_and_a_swap_of_whole_weights_work_beside_adapters(people: Served, tmp_path: Path):
    path = perturbed(CHECKPOINT, tmp_path / "v6", seed=6)
    assert_said_by(CHECKPOINT, turn_of(people, content=LONG))
    point(people.layout, release_of(path, 6))
    people.wait_for("x-sdpo-policy-version", "6")
    assert_said_by(path, turn_of(people, content=LONG))
    said = ask(people, path="completions", prompt="The capital of France", max_tokens=1, echo=True, logprobs=1)
    assert said.status == 200, said.text
    to_base(people)
    assert_said_by(CHECKPOINT, turn_of(people, content=LONG))


def test_what_the_job_publishes_answers_its_owner_until_it_is_removed(people: Served, candidates: dict[int, Candidate]):
    layout = people.layout
    owner = owner_named(layout, tenant="default", user="dora", whole_tenant=False).digest
    policy = seal_adapter(layout, owner, candidates[2])
    attempt = Attempt(
        owner=owner,
        version=1,
        base_version=0,
        snapshot=NOTHING,
        verdict=Verdict.PROMOTE,
        reasons=(),
        name=policy.name,
        ended_at_s=0.0,
    )
    conclude(layout, attempt, policy)
    time.sleep(1.1)
    turn = turn_of(people, user="dora", content=LONG)
    assert turn.adapter == policy.name
    assert_said_by(candidates[2].path, turn)
    assert remove(layout, owner)
    time.sleep(1.1)
    turn = turn_of(people, user="dora", content=LONG)
    assert turn.adapter == ""
    assert_said_by(CHECKPOINT, turn)
