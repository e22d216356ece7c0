"""kill -9 of a replica, an engine and the Serve controller; SIGSTOP and SIGTERM; under constant load.

Two replicas stand behind HAProxy, as on a cluster. A killed process is restarted with the released version; requests
under way on it fail, and no others; every receipted turn is in the journal, once.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.cluster.local_cluster import LocalCluster, free_port
from sdpo_ray.cluster.serve_deploy import deploy
from sdpo_ray.config import load_run
from sdpo_ray.records import Turn
from tests.faults.service_probes import chat, engine_of, named, wait_until
from tests.support.paths import CHECKPOINT
from tests.support.serving import Served, perturbed, point, release_of
from tests.support.streaming import assert_begun_streams_end_whole

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
RELEASED = 2
RECOVERED_S = 240
"""Longest time until both replicas answer again: an engine takes tens of seconds to start on a shared machine."""
PATIENCE_S = 10
NOTICED_S = 0.5
"""A request that is sent this soon after a kill may still reach the killed process."""
SEATS = ("raw", "raw", "raw", "stream", "stream", "stream", "retrying", "retrying")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and its outcome."""

    how: str
    began_s: float
    ended_s: float
    receipt: str = ""
    version: str = ""
    error: str = ""


@dataclass(slots=True)
class Service:
    """Two replicas of the users' application on a separate cluster."""

    served: Served
    cluster: LocalCluster

    def replicas(self) -> list[psutil.Process]:
        return named("ServeReplica:policy", self.cluster.pid)

    def controller(self) -> psutil.Process:
        (process,) = named("ServeController", self.cluster.pid)
        return process

    def is_whole(self) -> bool:
        """Whether two replicas answer, each on its own port, with the released version."""
        try:
            versions = [self._version(replica) for replica in self.replicas()]
        except (httpx.HTTPError, psutil.Error, StopIteration):
            return False
        return versions == [str(RELEASED)] * 2

    def _version(self, replica: psutil.Process) -> str:
        listening = [each.laddr.port for each in replica.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        port = next(port for port in listening if 20_000 <= port < 32_768)
        reply = httpx.get(f"http://127.0.0.1:{port}/health", timeout=10)
        return reply.headers.get("x-sdpo-policy-version", "") if reply.status_code == 200 else ""


@dataclass(slots=True)
class Crowd:
    """Clients that send requests until they are stopped: plain, streaming, and with OpenAI's client and its retries."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)

    def sit(self, how: str, seat: int) -> None:
        ask = {"raw": self._plain, "stream": self._stream, "retrying": self._retrying}[how]
        number = 0
        while not self.stop.is_set():
            number += 1
            body = chat(f"Seat {seat} asks for the {number}. time.", max_tokens=random.choice((8, 48)))
            began = time.monotonic()
            try:
                receipt, version = ask(body)
                said = Asked(how, began, time.monotonic(), receipt=receipt, version=version)
            except (httpx.HTTPError, openai.OpenAIError, AssertionError) as error:
                said = Asked(how, began, time.monotonic(), error=f"{type(error).__name__}: {error}"[:300])
            self.asked.append(said)

    def _plain(self, body: dict[str, object]) -> tuple[str, str]:
        reply = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        assert json.loads(reply.text)["choices"]
        return reply.headers["x-sdpo-turn-id"], reply.headers["x-sdpo-policy-version"]

    def _stream(self, body: dict[str, object]) -> tuple[str, str]:
        url = f"{self.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=60) as reply:
            lines = list(reply.iter_lines())
            assert reply.status_code == 200, lines
        assert "data: [DONE]" in lines, "the stream broke off"
        assert not any(line.startswith('data: {"error"') for line in lines), lines[-3:]
        stored = not any(line.startswith(": x-sdpo-turn-id not stored") for line in lines)
        return reply.headers["x-sdpo-turn-id"] if stored else "", reply.headers["x-sdpo-policy-version"]

    def _retrying(self, body: dict[str, object]) -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=2, timeout=60) as client:
            raw = client.chat.completions.with_raw_response.create(**body)  # type: ignore[call-overload]
            assert raw.parse().choices
            return raw.headers["x-sdpo-turn-id"], raw.headers["x-sdpo-policy-version"]

    def under_way(self, at_s: float) -> int:
        """Requests that were under way at that time."""
        return sum(1 for each in self.asked if each.began_s <= at_s <= each.ended_s)

    def failed(self) -> list[Asked]:
        return [each for each in self.asked if each.error]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("killed")
    overrides = [
        f"root={folder / 'run'}",
        f"serve.port={free_port()}",
        f"policy.base={CHECKPOINT}",
        "serve.num_replicas=2",
        f"serve.engine_patience_s={PATIENCE_S}",
        "capture.journal.segment_mib=1",
        "capture.journal.segment_s=2",
    ]
    run = load_run(LAPTOP, overrides)
    layout = run.layout
    point(layout, release_of(perturbed(CHECKPOINT, folder / "v2", seed=RELEASED), RELEASED, previous=None))
    with LocalCluster(num_cpus=6, log=folder / "ray.log") as cluster:
        deploy(cluster.dashboard, run, Path(LAPTOP).absolute(), overrides, only=("policy",))
        served = Served(url=run.serve.url, layout=layout, base=CHECKPOINT, overrides=tuple(overrides))
        service = Service(served, cluster)
        wait_until(service.is_whole, "two replicas on the released version", RECOVERED_S)
        yield service


@contextmanager
def crowd(service: Service) -> Iterator[Crowd]:
    people = Crowd(service.served.url)
    with ThreadPoolExecutor(len(SEATS)) as pool:
        seats = [pool.submit(people.sit, how, number) for number, how in enumerate(SEATS)]
        try:
            wait_until(lambda: len(people.asked) > 4 * len(SEATS), "people who are answered")
            yield people
            asked = len(people.asked)
            wait_until(lambda: len(people.asked) > asked + 4 * len(SEATS), "people who are answered afterwards")
        finally:
            people.stop.set()
        for seat in seats:
            seat.result()


def assert_receipts_hold(service: Service, people: Crowd) -> None:
    """Every receipted turn is in the journal; no turn is there twice."""
    stored = Counter(event.turn_id for event in service.served.events() if isinstance(event, Turn))
    receipts = [each.receipt for each in people.asked if each.receipt]
    assert len(receipts) > 4 * len(SEATS)
    assert [receipt for receipt in receipts if stored[receipt] != 1] == []
    assert max(stored.values()) == 1
    assert {each.version for each in people.asked if each.receipt} == {str(RELEASED)}


def assert_only_those_under_way_failed(people: Crowd, since_s: float, until_s: float) -> None:
    """No request failed except those that reached the killed process between these times."""
    failed = people.failed()
    print(f"{len(failed)} of {len(people.asked)} failed: {Counter(each.error[:80] for each in failed)}")
    assert [each for each in failed if each.how == "retrying"] == [], "the stock client asks again"
    assert [each for each in failed if not since_s - NOTICED_S <= each.ended_s] == [], "before anything was broken"
    assert [each for each in failed if each.began_s > until_s + NOTICED_S] == [], "requests that met nothing dying"
    assert len(failed) <= len(SEATS)


@pytest.mark.parametrize("what", ["replica", "engine"])
def test_a_killed_process_fails_only_its_own_requests_and_is_restarted(service: Service, what: str):
    with crowd(service) as people:
        replica = random.choice(service.replicas())
        killed_s = time.monotonic()
        (replica if what == "replica" else engine_of(replica)).kill()
        wait_until(lambda: not replica.is_running(), "the end of the replica", RECOVERED_S)
        wait_until(service.is_whole, "two replicas on the released version", RECOVERED_S)
        print(f"whole again after {time.monotonic() - killed_s:.1f} s")
    assert_only_those_under_way_failed(people, killed_s, killed_s)
    assert_receipts_hold(service, people)


def test_a_killed_controller_fails_no_request(service: Service):
    replicas = {replica.pid for replica in service.replicas()}
    with crowd(service) as people:
        controller = service.controller()
        controller.kill()
        wait_until(lambda: bool(named("ServeController", service.cluster.pid)), "another controller", RECOVERED_S)
        wait_until(service.is_whole, "two replicas on the released version", RECOVERED_S)
    assert people.failed() == []
    assert {replica.pid for replica in service.replicas()} == replicas
    assert_receipts_hold(service, people)


def test_an_engine_that_hangs_is_replaced_with_its_replica(service: Service):
    with crowd(service) as people:
        replica = random.choice(service.replicas())
        engine = engine_of(replica)
        stopped_s = time.monotonic()
        engine.suspend()
        wait_until(lambda: not replica.is_running(), "the end of the replica", RECOVERED_S)
        ended_s = time.monotonic()
        wait_until(service.is_whole, "two replicas on the released version", RECOVERED_S)
    assert not engine.is_running()
    assert_only_those_under_way_failed(people, stopped_s, ended_s)
    assert_receipts_hold(service, people)


def test_a_replica_that_is_stopped_fails_no_request(service: Service):
    with crowd(service) as people:
        replica = random.choice(service.replicas())
        replica.terminate()
        wait_until(lambda: not replica.is_running(), "the end of the replica", RECOVERED_S)
        wait_until(service.is_whole, "two replicas on the released version", RECOVERED_S)
    print(f"{len(people.failed())} of {len(people.asked)} failed")
    assert people.failed() == []
    assert_receipts_hold(service, people)


def test_a_node_that_is_stopped_completes_every_stream_that_has_begun(service: Service):
    """The last test that uses this cluster. `ray start --block` is what Kubernetes stops first."""
    node = psutil.Process(service.cluster.pid)
    assert_begun_streams_end_whole(service.served, node.terminate, num_tokens=400)
