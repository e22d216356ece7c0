"""The replica's own numbers, beside vLLM's."""

import asyncio
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.errors import SwapError
from sdpo_ray.telemetry import Counters
from serve.gateway.policy_metrics import PolicyMetrics, SwapMetrics
from serve.weights.swapper import StallPhases, Swapper
from tests.support.recorded_engine import MemoryLog, client_of, recorder_of

STALL = StallPhases(drain_s=0.125, load_s=0.0625, verify_s=0.03125)


def page_of(recorder: Recorder, alarm_bytes: int | None) -> str:
    swapper: Any = SimpleNamespace(serving=SimpleNamespace(policy_version=3), stall=STALL)
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
        assert "sdpo_log_bytes" not in page
        assert "sdpo_policy_version 3.0" in page


def test_swaps_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    swaps = SwapMetrics(registry)
    with swaps.swap():
        pass
    with pytest.raises(SwapError), swaps.swap():
        raise SwapError("torn")
    page = generate_latest(registry).decode()
    for line in (
        'sdpo_swaps_total{outcome="served"} 1.0',
        'sdpo_swaps_total{outcome="refused"} 1.0',
        "sdpo_swap_seconds_count 1.0",
    ):
        assert line in page


def test_the_age_of_the_journal_and_the_counters_of_others_are_on_the_page(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path, MemoryLog())
    swapper: Any = SimpleNamespace(serving=SimpleNamespace(policy_version=3), stall=STALL)
    others = Counters.empty()
    others.add("served", 5)
    journal = tmp_path / "journal"

    def page() -> str:
        registry = CollectorRegistry()
        registry.register(
            PolicyMetrics(
                recorder,
                cast(Swapper, swapper),
                lambda: False,
                1500,
                journal=journal,
                more={"sdpo_personal": others},
            )
        )
        return generate_latest(registry).decode()

    assert "sdpo_log_oldest_seconds 0.0" in page()
    journal.mkdir()
    for name, age_s in (("1.log", 500), ("2.log", 3)):
        (journal / name).touch()
        written = time.time() - age_s
        os.utime(journal / name, (written, written))
    found = re.search(r"^sdpo_log_oldest_seconds (\S+)", page(), re.MULTILINE)
    assert found is not None
    assert 500 <= float(found[1]) < 560
    assert 'sdpo_personal_total{outcome="served"} 5.0' in page()
    assert "sdpo_log_healthy 1.0" in page()


def test_the_last_stall_is_shown_as_a_whole_and_by_phase(tmp_path: Path) -> None:
    page = page_of(recorder_of(tmp_path, MemoryLog()), None)
    assert "sdpo_swap_stall_seconds 0.21875" in page
    for phase, seconds in (("drain", 0.125), ("load", 0.0625), ("verify", 0.03125)):
        assert f'sdpo_swap_stall_phase_seconds{{phase="{phase}"}} {seconds}' in page
