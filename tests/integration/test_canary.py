"""Canary releases with two real engines: a bad candidate is rolled back, a good one promoted; no request fails."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient

from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import load_run
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.pipeline.stages import Pipeline
from sdpo_ray.promote.canary import begin, current, end
from sdpo_ray.promote.model_versions import ModelVersions
from sdpo_ray.promote.registry import Registry
from sdpo_ray.records import (
    BASE_VERSION,
    Candidate,
    CycleOutcome,
    CycleStart,
    Decision,
    Release,
    Report,
    Verdict,
    cycle_of_version,
)
from sdpo_ray.records.run_events import CanaryProgress
from sdpo_ray.simulate.world import is_right, sample_prompt
from sdpo_ray.tables.arrow_schemas import turns_from_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.telemetry import EventFile, read_events
from tests.support.serving import Served, deployed, perturbed, release_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.usefixtures("back_to_base")]


@pytest.fixture(scope="module")
def canary(served: Served) -> Iterator[str]:
    """The engine of the canary, beside the users' one. Yields its URL."""
    with deployed("canary", served.overrides, audience="canary"):
        yield f"{served.url}/canary"
        end(served.layout)


class Town:
    """Simulated users: each asks one question, and reacts to whether the answer is right."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._name = f"town-{seed}"
        self.failed: list[str] = []
        self.answered: Counter[str] = Counter()
        """Number of answers by policy version."""
        self.receipts: set[str] = set()

    @contextmanager
    def awake(self, seats: int = 4) -> Iterator[None]:
        over = threading.Event()
        threads = [threading.Thread(target=self._sit, args=(over,)) for _ in range(seats)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _sit(self, over: threading.Event) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not over.is_set():
                self._talk(client)

    def _talk(self, client: httpx.Client) -> None:
        with self._lock:
            question = sample_prompt(self._rng, "train")
            user = f"{self._name}-{self._rng.randrange(10**9)}"
        messages = [{"role": "user", "content": question.prompt}]
        answer = self._ask(client, messages, user)
        word = "Thanks!" if is_right(question, answer) else "That is wrong."
        self._ask(
            client, [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": word}], user
        )

    def _ask(self, client: httpx.Client, messages: list[dict[str, str]], user: str) -> str:
        body = {"model": "policy", "messages": messages, "user": user, "max_tokens": 48}
        reply = client.post("/v1/chat/completions", json=body)
        with self._lock:
            if reply.status_code != 200:
                self.failed.append(f"{reply.status_code}: {reply.text[:200]}")
                return ""
            self.answered[reply.headers["x-sdpo-policy-version"]] += 1
            self.receipts.add(reply.headers["x-sdpo-turn-id"])
        return str(reply.json()["choices"][0]["message"]["content"] or "")


class Court:
    """The training loop of a run with a canary, and its registry."""

    def __init__(self, served: Served, folder: Path, *overrides: str) -> None:
        self.served = served
        self._folder = folder
        self.run = load_run(
            LAPTOP,
            # Two engines and the tests share two cores: latencies do not depend on the policy here.
            [
                *served.overrides,
                "promote.poll_s=0.2",
                "promote.canary.max_slower=50",
                "promote.canary.share=0.5",
                *overrides,
            ],
        )
        self.registry = Registry(served.layout, model_name="policy")
        base = read_json(served.layout.release(BASE_VERSION), Release)
        self.registry.register_base(base, served=base)
        self.registry.set_champion(BASE_VERSION)
        self._mlflow = MlflowClient(self.registry.tracking_uri, self.registry.tracking_uri)

    def candidate(self, version: int, *, noise: float) -> Candidate:
        path = perturbed(self.served.base, self._folder / f"v{version}", seed=version, scale=noise)
        fingerprint = release_of(path, version).fingerprint
        return Candidate(
            policy_version=version,
            parent_version=BASE_VERSION,
            path=str(path),
            snapshot_id="s",
            fingerprint=fingerprint,
        )

    def release(self, candidate: Candidate) -> CycleOutcome:
        """Run the release stage for a candidate that passed the gate."""
        version, layout = candidate.policy_version, self.served.layout
        decision = Decision(policy_version=version, verdict=Verdict.PROMOTE, reasons=("win rate 0.61",))
        write_json(layout.cycle(cycle_of_version(version)) / "distill.json", candidate)
        write_json(layout.cycle(cycle_of_version(version)) / "decide.json", decision)
        ModelVersions(self._mlflow, "policy").register(version, candidate.path, {"status": "passed"}, "")
        base = BASE_VERSION
        report = Report(policy_version=version, base_version=base, champion_version=base, confidence=0.95, scores=())
        begun = CycleStart(cycle=cycle_of_version(version), policy_version=version, parent_version=base, seed=0)
        log = open_log(layout, self.run.capture, name=f"court-{version}")
        try:
            curator = Curator(layout, log, curate=self.run.curate, capture=self.run.capture)
            pipeline = Pipeline(self.run, curator, self.registry, EventFile(layout.events))
            return pipeline.stages.release(begun, candidate, report, decision)
        finally:
            log.close()

    def tags(self, version: int) -> dict[str, str]:
        return dict(self._mlflow.get_model_version("policy", str(version)).tags)

    def progress(self, version: int) -> CanaryProgress:
        """The last figures of the version's canary."""
        events = read_events(self.served.layout.events)
        return [
            event for event in events if isinstance(event, CanaryProgress) and event.cycle == cycle_of_version(version)
        ][-1]


def stored(served: Served) -> dict[str, int]:
    """Policy versions of all turns by id: those in the journal and those in the table."""
    waiting = {turn.turn_id: turn.policy_version for turn in served.turns().values()}
    table = turns_from_arrow(Table.turns(served.layout).read())
    return waiting | {turn.turn_id: turn.policy_version for turn in table}


def running(canary: str, served: Served) -> float:
    """Number of running requests in the canary's engine."""
    key = served.layout.canary_key.read_text()
    page = httpx.get(f"{canary}/metrics", headers={"authorization": f"Bearer {key}"}).text
    return sum(
        float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith("vllm:num_requests_running{")
    )


def test_a_client_that_disconnects_from_the_candidate_leaves_no_running_request(
    served: Served, canary: str, tmp_path: Path
):
    court = Court(served, tmp_path, "promote.canary.mode=canary")
    begin(
        served.layout,
        court.candidate(300, noise=1e-4),
        read_json(served.layout.release(BASE_VERSION), Release),
        court.run.promote.canary,
    )
    try:
        while httpx.get(f"{canary}/health").headers["x-sdpo-policy-version"] != "300":
            time.sleep(0.05)
        met: Counter[str] = Counter()
        for number in range(20):
            body = {
                "model": "policy",
                "messages": [{"role": "user", "content": f"Question {number}?"}],
                "max_tokens": 480,
                "min_tokens": 480,
                "ignore_eos": True,
                "stream": True,
            }
            with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=60) as reply:
                met[reply.headers["x-sdpo-policy-version"]] += 1
                next(reply.iter_bytes())
        assert met["300"] > 0
        assert met["1"] > 0
        deadline = time.monotonic() + 30
        while running(canary, served):
            assert time.monotonic() < deadline, "the canary still generates for a client that disconnected"
            time.sleep(0.1)
        asked = {"model": "policy", "messages": [{"role": "user", "content": "Hello?"}]}
        assert httpx.post(f"{canary}/v1/chat/completions", json=asked).status_code == 401
    finally:
        end(served.layout)


def test_a_candidate_of_noise_is_rolled_back_automatically(served: Served, canary: str, tmp_path: Path):
    court, town = Court(served, tmp_path, "promote.canary.mode=canary"), Town(served.url, seed=301)
    with town.awake():
        outcome = court.release(court.candidate(301, noise=0.5))
        assert current(served.layout) is None
        met = town.answered["301"]
        time.sleep(1)
    assert (outcome.verdict, outcome.champion_version) == (Verdict.REJECT, BASE_VERSION)
    assert "canary of v301: users complain more of it: evidence" in outcome.reasons[0]
    assert town.failed == []
    assert set(town.answered) == {"1", "301"}
    # Requests under way when the canary ended, and no new ones.
    assert town.answered["301"] - met <= 8
    progress = court.progress(301)
    assert progress.complaints > progress.complaints_champion
    assert progress.evidence_complaints >= progress.evidence_needed
    tags = court.tags(301)
    assert (tags["canary"], tags["status"]) == ("canary", "refused")
    assert tags["outcome"] == f"REJECT: {outcome.reasons[0]}"
    turns = stored(served)
    assert town.receipts <= turns.keys()
    assert Counter(str(turns[turn_id]) for turn_id in town.receipts) == town.answered
    deadline = time.monotonic() + 30
    while httpx.get(f"{canary}/health").headers["x-sdpo-policy-version"] != "1":
        assert time.monotonic() < deadline, "the canary does not follow the champion"
        time.sleep(0.1)


def test_a_shadow_candidate_answers_copies_and_shows_none(served: Served, canary: str, tmp_path: Path):
    settings = ("promote.canary.mode=shadow", "promote.canary.min_answers=1000", "promote.canary.max_hours=0.001")
    court, town = Court(served, tmp_path, *settings), Town(served.url, seed=302)
    with town.awake():
        outcome = court.release(court.candidate(302, noise=1e-4))
    assert outcome.verdict is Verdict.HOLD
    assert court.progress(302).answers > 0
    assert town.failed == []
    assert set(town.answered) == {"1"}
    assert 302 not in stored(served).values()


def test_a_good_candidate_is_promoted_after_enough_answers(served: Served, canary: str, tmp_path: Path):
    court = Court(served, tmp_path, "promote.canary.mode=canary", "promote.canary.min_answers=20")
    town = Town(served.url, seed=303)
    with town.awake():
        outcome = court.release(court.candidate(303, noise=1e-4))
        served.wait_for("x-sdpo-policy-version", "303")
    assert (outcome.verdict, outcome.champion_version) == (Verdict.PROMOTE, 303)
    assert outcome.reasons[0] == "win rate 0.61"
    assert "canary of v303: nothing against it" in outcome.reasons[1]
    assert court.progress(303).judged >= 20
    assert town.failed == []
    assert current(served.layout) is None
    assert (court.tags(303)["canary"], court.tags(303)["status"]) == ("canary", "champion")
    court.registry.set_champion(BASE_VERSION)
