"""One evaluation at a time has the engine, and each policy answers once. The engine here is a fake."""

import threading
from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.config import parse_run
from sdpo_ray.evaluate import runner
from sdpo_ray.evaluate.client import Answer, Answers
from sdpo_ray.evaluate.runner import EvalRunner
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import FinishReason, Release
from sdpo_ray.simulate.toy_world import held_out_prompts
from tests.support import builders


class Engine:
    """Answers with what the pointer names while each question is asked."""

    def __init__(self, layout: Layout) -> None:
        self.pointer = layout.eval_pointer
        self.asked: list[int] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    async def generate(self, url: str, key: str, model: str, prompts: list[str], **asked: Any) -> Answers:
        self.asked.append(asked["policy_version"])
        self.entered.set()
        self.go_on.wait(timeout=30)
        return tuple(
            Answer(
                prompt=prompt, text="Paris.", num_tokens=2, finish_reason=FinishReason.STOP,
                policy_version=read_json(self.pointer, Release).policy_version,
            )
            for prompt in prompts
        )  # fmt: skip


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.eval_key.write_text("key")
    return layout


@pytest.fixture
def engine(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine(layout)
    monkeypatch.setattr(runner, "generate", made.generate)
    return made


def evaluation(layout: Layout, num_prompts: int = 8) -> EvalRunner:
    prompts = held_out_prompts(num_prompts)
    return EvalRunner(parse_run({"root": str(layout.root)}), prompts, confirm=lambda url, version, timeout_s: 0.0)


def answers(layout: Layout, version: int, *, num_prompts: int = 8, temporary: bool = False) -> Answers:
    policy = builders.release(layout.root / f"v{version}", policy_version=version)
    path = layout.evaluation(version) / "answers.json"
    return evaluation(layout, num_prompts).answers(policy, path, lambda done, total: None, temporary=temporary)


def test_answers_are_generated_once_and_again_when_the_questions_change(layout: Layout, engine: Engine):
    first = answers(layout, 3)
    assert answers(layout, 3) == first
    assert engine.asked == [3]
    assert len(answers(layout, 3, num_prompts=9)) == 9
    assert engine.asked == [3, 3]


def test_concurrent_evaluations_wait_for_each_other(layout: Layout, engine: Engine):
    engine.go_on.clear()
    found: dict[int, Answers] = {}
    threads = [threading.Thread(target=lambda v=v: found.update({v: answers(layout, v)})) for v in (4, 1 << 48)]
    threads[0].start()
    assert engine.entered.wait(timeout=10)
    threads[1].start()
    threads[1].join(timeout=0.5)
    assert read_json(layout.eval_pointer, Release).policy_version == 4, "the second evaluation waits"
    engine.go_on.set()
    for thread in threads:
        thread.join(timeout=10)
    assert {version: {each.policy_version for each in given} for version, given in found.items()} == {
        4: {4},
        1 << 48: {1 << 48},
    }


def test_the_engine_goes_back_after_a_temporary_policy(layout: Layout, engine: Engine):
    answers(layout, 4)
    before = read_json(layout.eval_pointer, Release)
    assert {each.policy_version for each in answers(layout, 5, temporary=True)} == {5}
    assert read_json(layout.eval_pointer, Release) == before
    answers(layout, 6)
    assert read_json(layout.eval_pointer, Release).policy_version == 6
