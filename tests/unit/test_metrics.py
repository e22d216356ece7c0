"""The replica's own numbers, beside vLLM's."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sdpo_ray.capture.recorder import Recorder
from serve.metrics import PolicyMetrics
from serve.swap import Swapper
from tests.recorded import MemoryLog, client_of, recorder_of


def page_of(recorder: Recorder, alarm_bytes: int | None) -> str:
    swapper: Any = SimpleNamespace(serving=SimpleNamespace(policy_version=3), stall_s=0.25)
    registry = CollectorRegistry()
    registry.register(PolicyMetrics(recorder, cast(Swapper, swapper), lambda: False, alarm_bytes))
    return generate_latest(registry).decode()


def test_turns_feedback_redactions_and_the_journal_are_counted(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path, MemoryLog())

    async def use() -> None:
        async with client_of(recorder, lambda _: "Ask a@example.org or b@example.org.") as client:
            await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Whom?"}]})
            await client.post("/v1/feedback", json={"turn_id": "t", "thumb": "up"})
            await client.post("/v1/feedback", json={"turn_id": "t"})

    asyncio.run(use())
    page = page_of(recorder, 1500)
    for line in (
        'sdpo_turns_total{outcome="recorded"} 1.0',
        'sdpo_feedback_total{outcome="recorded"} 1.0',
        'sdpo_feedback_total{outcome="not_recorded.bad_request"} 1.0',
        'sdpo_redactions_total{kind="email"} 2.0',
        "sdpo_log_bytes 2000.0",
        "sdpo_log_alarm 1.0",
        "sdpo_policy_version 3.0",
    ):
        assert line in page
    assert "sdpo_log_alarm 0.0" in page_of(recorder, 2000)


def test_a_log_that_is_elsewhere_or_cannot_be_measured_leaves_the_other_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: MemoryLog, after: object) -> int:
        raise OSError(5, "Input/output error")

    recorder = recorder_of(tmp_path, MemoryLog())
    monkeypatch.setattr(MemoryLog, "backlog_bytes", fail)
    for alarm_bytes in (None, 1500):
        page = page_of(recorder, alarm_bytes)
        assert "sdpo_log" not in page
        assert "sdpo_policy_version 3.0" in page
