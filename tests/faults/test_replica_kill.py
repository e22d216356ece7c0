"""kill -9 of the Serve replica, which writes the journal: every receipted turn is on disk."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest

from tests.support.serving import Served, perturbed, point, release_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def replica_pids() -> list[int]:
    """Processes of the users' replica among the descendants of this test session."""
    pids = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ServeReplica:users" in " ".join(process.cmdline()):
                pids.append(process.pid)
    return pids


@pytest.mark.usefixtures("back_to_base")
def test_a_killed_replica_loses_no_receipted_turn_and_comes_back_on_the_released_version(served: Served, tmp_path):
    point(served.layout, release_of(perturbed(served.base, tmp_path / "v5", seed=5), 5))
    served.wait_for("x-sdpo-policy-version", "5")
    stop = False

    def talk(client: openai.OpenAI, seat: int) -> list[str]:
        receipts = []
        while not stop:
            try:
                raw = client.chat.completions.with_raw_response.create(
                    model="policy",
                    messages=[{"role": "user", "content": f"Seat {seat} asks"}],
                    max_tokens=24,
                    stream=seat % 2 == 0,
                )
                if seat % 2 == 0:
                    # A stream that breaks off has no receipt: only its last event confirms that the turn is on disk.
                    with raw.parse() as stream:
                        list(stream)
            except (openai.OpenAIError, httpx.HTTPError):
                time.sleep(0.05)
                continue
            receipts.append(raw.headers["x-sdpo-turn-id"])
        return receipts

    (pid,) = replica_pids()
    engines = psutil.Process(pid).children(recursive=True)
    assert engines
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=20) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        seats = [pool.submit(talk, client, seat) for seat in range(6)]
        try:
            time.sleep(3)
            psutil.Process(pid).kill()
            deadline = time.monotonic() + 120
            while (pids := replica_pids()) in ([], [pid]):
                assert time.monotonic() < deadline, "Ray Serve started no other replica"
                time.sleep(0.1)
            served.wait_for("x-sdpo-policy-version", "5", timeout_s=120)
            time.sleep(2)
        finally:
            stop = True
        receipts = [receipt for seat in seats for receipt in seat.result()]
    assert pids != [pid]
    assert [engine.pid for engine in engines if engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE] == []
    turns = served.turns()
    assert len(receipts) == len(set(receipts)) > 10
    assert [receipt for receipt in receipts if receipt not in turns] == []
