"""Releases as LoRA adapters over the base, in a real engine: hand-over, prefix cache, and adapters that are broken."""

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdpo_ray.records import Candidate
from tests.support.adapter_serving import (
    LONG,
    QUESTION,
    UNUSED_VERSIONS,
    always_answering,
    ask_policy,
    assert_sampled_from,
    deploy,
    recorded_turn,
    serve_base,
    torn,
)
from tests.support.adapters import ADAPTER, CONFIG, WEIGHTS, adapter_release, rewrite
from tests.support.paths import CHECKPOINT
from tests.support.serving import ReferencePolicy, Served, point

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def by_adapter(serve_http: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An application that is released to as adapters over the base."""
    root = tmp_path_factory.mktemp("by_adapter")
    yield from deploy(serve_http, root, "by_adapter", 'serve.swap="adapter"', "distill.lora.rank=4")


def stream(served: Served, began: threading.Event) -> str:
    """Read a long stream, and set `began` at its first text. Returns the id of its turn."""
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
    serve_base(by_adapter)
    point(by_adapter.layout, adapter_release(candidates[2]))
    by_adapter.wait_for("x-sdpo-policy-version", "2")
    began = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(stream, by_adapter, began)
        assert began.wait(30)
        point(by_adapter.layout, adapter_release(candidates[3]))
        headers = by_adapter.wait_for("x-sdpo-policy-version", "3")
        newer = recorded_turn(by_adapter)
        overtaken = not older.done()
        turn_id = older.result()
    old = by_adapter.turns()[turn_id]
    assert overtaken, "the older answer ended before the newer one"
    assert headers["x-sdpo-stall-s"] == "0.000"
    assert [span.policy_version for span in old.version_spans] == [2]
    assert [span.policy_version for span in newer.version_spans] == [3]
    assert_sampled_from(candidates[2].path, old)
    assert_sampled_from(candidates[3].path, newer)


def test_a_long_prompt_that_two_adapters_share_is_not_shared_in_the_cache(
    by_adapter: Served, candidates: dict[int, Candidate]
):
    for version in (2, 3):
        point(by_adapter.layout, adapter_release(candidates[version]))
        by_adapter.wait_for("x-sdpo-policy-version", str(version))
        assert_sampled_from(candidates[version].path, recorded_turn(by_adapter, content=LONG))
    serve_base(by_adapter)
    assert_sampled_from(CHECKPOINT, recorded_turn(by_adapter, content=LONG))


def test_an_adapters_name_is_not_a_model_name(by_adapter: Served, candidates: dict[int, Candidate]):
    point(by_adapter.layout, adapter_release(candidates[2]))
    by_adapter.wait_for("x-sdpo-policy-version", "2")
    assert ask_policy(by_adapter, model="policy@v2").status == 404
    listed = httpx.get(f"{by_adapter.url}/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["policy"]


def test_log_probs_of_a_prompt_are_the_adapters_and_leave_the_engine_alive(
    by_adapter: Served, candidates: dict[int, Candidate]
):
    point(by_adapter.layout, adapter_release(candidates[2]))
    by_adapter.wait_for("x-sdpo-policy-version", "2")
    reply = ask_policy(
        by_adapter, path="completions", prompt="The capital of France", max_tokens=1, echo=True, logprobs=1
    )
    assert reply.status == 200, reply.text
    choice = json.loads(reply.text)["choices"][0]["logprobs"]
    from sdpo_ray.chat import ChatFormat

    ids = ChatFormat(CHECKPOINT).text_ids("The capital of France")
    expected = ReferencePolicy(Path(candidates[2].path)).logprobs(ids)
    assert choice["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=2e-3)
    assert ask_policy(by_adapter).status == 200


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


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


BROKEN_ADAPTERS = {
    "no config": (without(CONFIG), True, "adapter_config.json"),
    "no weights": (without(WEIGHTS), True, "holds no safetensors file"),
    "torn": (torn, True, "is torn, or no safetensors file"),
    "one bit": (one_bit, True, "its sha256 differs"),
    "one bit, without digests": (one_bit, False, ""),
    "not a number": (not_a_number, False, "not a number"),
    "another shape": (narrow, False, r"not \("),
    "another kind of number": (of_numbers, False, "I32"),
    "another base": (over_another_base, True, "belongs over"),
}


@pytest.mark.parametrize(("harm", "digests", "why"), BROKEN_ADAPTERS.values(), ids=BROKEN_ADAPTERS)
def test_a_broken_adapter_is_refused_with_a_reason_and_the_old_one_stays(
    by_adapter: Served, candidates: dict[int, Candidate], tmp_path: Path, harm: Any, digests: bool, why: str
):
    point(by_adapter.layout, adapter_release(candidates[2]))
    by_adapter.wait_for("x-sdpo-policy-version", "2")
    shutil.copytree(candidates[3].path, tmp_path / "v9")
    harm(tmp_path / "v9" / ADAPTER)
    broken = replace(
        adapter_release(candidates[3]), policy_version=next(UNUSED_VERSIONS), adapter=str(tmp_path / "v9" / ADAPTER)
    )
    if not digests:
        broken = replace(broken, digests=())
    if not why:
        # One bit of a small weight does not change the fingerprint measurably, so the expected one is another policy's.
        broken = replace(broken, fingerprint=candidates[2].fingerprint)
        why = "log-probs differ"
    with always_answering(by_adapter):
        point(by_adapter.layout, broken)
        headers = by_adapter.wait_for("x-sdpo-swap-error", f"v{broken.policy_version}:")
    assert re.search(why, headers["x-sdpo-swap-error"])
    assert headers["x-sdpo-policy-version"] == "2"
    assert_sampled_from(candidates[2].path, recorded_turn(by_adapter))
