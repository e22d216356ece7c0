"""A canary as the training loop runs it, over real tables and a real pointer; its application only has a version."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from sdpo_ray.config import parse_run
from sdpo_ray.headers import POLICY_VERSION, SWAP_ERROR
from sdpo_ray.io.paths import Layout
from sdpo_ray.pipeline.canary_runner import CanaryRunner
from sdpo_ray.promote.canary import begin, current
from sdpo_ray.promote.release import point_at
from sdpo_ray.records import Candidate, Fingerprint, Interaction, Report, Verdict, VersionSpan
from sdpo_ray.records.run_events import CanaryProgress, ShadowResponse
from sdpo_ray.tables.arrow_schemas import interactions_to_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.telemetry import EventFile, read_events
from tests.support.conversations import turn

WHY = ("win rate 0.61",)


class Health(http.server.BaseHTTPRequestHandler):
    """`/canary/health` with the headers that the test sets."""

    headers_sent: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/canary/health" else 404)
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Health.headers_sent = {POLICY_VERSION: "7"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server.server_address[1]
        server.shutdown()
        serving.join()


class Tags:
    """Stands for the registry: keeps tags."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def tag(self, policy_version: int, key: str, value: str) -> None:
        self.tags[f"v{policy_version}.{key}"] = value


class Bench:
    """A run with a canary. `happens` is called once a round, in the place of curation."""

    def __init__(self, folder: Path, port: int, **rules: Any) -> None:
        canary = {"mode": "canary", "share": 0.5, "min_answers": 20, **rules}
        promote = {"canary": canary, "poll_s": 0.01, "confirm_timeout_s": 0.3}
        self.run = parse_run({"root": str(folder), "serve": {"port": port}, "promote": promote})
        self.layout = Layout(folder)
        self.turns, self.feedback = Table.turns(self.layout), Table.feedback(self.layout)
        self.interactions = Table.interactions(self.layout)
        self.registry = Tags()
        self.happens: Callable[[int], None] = lambda number: None
        self.rounds = 0
        point_at(self.layout, candidate(3))
        self.runner = self.new_runner()

    def new_runner(self) -> CanaryRunner:
        events = EventFile(self.layout.events)
        released: Any = self._champion
        return CanaryRunner(self.run, self, self.registry, events, released)  # type: ignore[arg-type]

    def _champion(self) -> Any:
        from sdpo_ray.promote.release import served_release

        return served_release(self.layout)

    def advance(self) -> None:
        self.rounds += 1
        assert self.rounds < 500, "the canary never ends"
        self.happens(self.rounds)

    def maintain(self) -> list[str]:
        return []

    def react(self, version: int, name: str, follow_up: str) -> None:
        """Add a user's reaction to a new answer of `version`."""
        spans = (VersionSpan(policy_version=version, start=0, end=2),)
        answer = turn(name, f"Question of {name}?", at_s=time.time(), version_spans=spans)
        reaction = Interaction(
            interaction_id=name,
            turn=answer,
            follow_up=follow_up,
            follow_up_turn_id=f"{name}-next",
            follow_up_at_s=time.time(),
            conversation=answer.keys.conversation,
        )
        assert self.interactions.append(interactions_to_arrow([reaction]), {}) is not None

    def judge(self) -> tuple[Verdict, tuple[str, ...]]:
        report = Report(policy_version=7, base_version=0, champion_version=3, confidence=0.95, scores=())
        return self.runner.judge(7, candidate(7), report, WHY)


def candidate(version: int) -> Candidate:
    return Candidate(
        policy_version=version,
        parent_version=0,
        path=f"v{version}",
        snapshot_id="s",
        fingerprint=Fingerprint(token_ids=(1, 2), logprobs=(-0.5,)),
    )


def progress(bench: Bench) -> list[CanaryProgress]:
    return [event for event in read_events(bench.layout.events) if isinstance(event, CanaryProgress)]


def test_without_a_canary_a_candidate_is_promoted_at_once(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port, mode="off")
    assert bench.judge() == (Verdict.PROMOTE, WHY)
    assert current(bench.layout) is None
    assert bench.registry.tags == {}


def test_a_good_candidate_passes_and_its_canary_lasts_until_it_is_ended(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port)

    def happens(number: int) -> None:
        assert (canary := current(bench.layout)) is not None
        assert canary.candidate.policy_version == 7
        for version in (3, 7):
            bench.react(version, f"{version}-{number}", "Thanks!")

    bench.happens = happens
    verdict, reasons = bench.judge()
    assert verdict is Verdict.PROMOTE
    assert reasons[0] == WHY[0]
    assert "canary of v7: nothing against it; 0 complaints in 20 conversations, 0 in 20 of v3" in reasons[1]
    assert bench.registry.tags == {"v7.canary": "canary"}
    assert current(bench.layout) is not None
    last = progress(bench)[-1]
    assert (last.mode, last.judged, last.needed) == ("canary", 20, 20)
    assert (last.reactions_champion, last.complaints) == (20, 0)
    bench.runner.end()
    assert current(bench.layout) is None


def test_a_bad_candidate_is_rejected_with_the_numbers(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port, min_answers=400)

    def happens(number: int) -> None:
        bench.react(3, f"3-{number}", "Thanks!")
        bench.react(7, f"7-{number}", "That is wrong.")

    bench.happens = happens
    verdict, (reason,) = bench.judge()
    assert verdict is Verdict.REJECT
    assert bench.rounds < 12
    assert f"{bench.rounds} complaints in {bench.rounds} conversations, 0 in {bench.rounds} of v3" in reason


def test_a_champion_that_moves_or_a_canary_that_is_ended_holds_the_candidate(tmp_path: Path, port: int):
    moved = Bench(tmp_path / "moved", port)
    moved.happens = lambda number: point_at(moved.layout, candidate(4)) and None
    assert moved.judge() == (Verdict.HOLD, ("the champion became v4 during the canary, from v3",))
    ended = Bench(tmp_path / "ended", port)
    ended.happens = lambda number: ended.runner.end()
    assert ended.judge() == (Verdict.HOLD, ("the canary was ended by hand",))
    before = Bench(tmp_path / "before", port)
    point_at(before.layout, candidate(4))
    verdict, reasons = before.judge()
    assert (verdict, reasons) == (Verdict.HOLD, ("the champion became v4 after the evaluation against v3",))
    assert current(before.layout) is None


def test_a_missing_canary_application_holds_and_one_that_refuses_rejects(tmp_path: Path, port: int):
    Health.headers_sent = {POLICY_VERSION: "3"}
    verdict, (reason,) = Bench(tmp_path / "away", port).judge()
    assert verdict is Verdict.HOLD
    assert reason.startswith("no canary without the application canary: v7 was released, but")
    Health.headers_sent = {POLICY_VERSION: "3", SWAP_ERROR: "v7: not the served architecture"}
    verdict, (reason,) = Bench(tmp_path / "refused", port).judge()
    assert verdict is Verdict.REJECT
    assert "refused v7: not the served architecture" in reason


def test_too_few_answers_in_time_hold_the_candidate(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port, max_hours=1e-5)
    verdict, (reason,) = bench.judge()
    assert verdict is Verdict.HOLD
    assert "0 answers of 20 after 0.0 h" in reason


def test_a_killed_job_resumes_its_canary_and_counts_earlier_reactions(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port)

    def dies(number: int) -> None:
        bench.react(7, f"7-{number}", "Thanks!")
        if number == 15:
            raise KeyboardInterrupt

    bench.happens = dies
    with pytest.raises(KeyboardInterrupt):
        bench.judge()
    began = current(bench.layout)
    assert began is not None
    bench.runner.end_stale(7)
    assert current(bench.layout) == began
    bench.runner = bench.new_runner()
    bench.happens = lambda number: bench.react(7, f"7-{number}", "Thanks!")
    verdict, _ = bench.judge()
    assert verdict is Verdict.PROMOTE
    assert bench.rounds == 20
    assert current(bench.layout) == began


def test_a_candidate_that_was_promoted_before_the_job_died_needs_no_second_canary(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port)
    point_at(bench.layout, candidate(7))
    assert bench.judge() == (Verdict.PROMOTE, WHY)


def test_canaries_that_no_cycle_resumes_are_ended(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port)
    rules = bench.run.promote.canary
    champion = bench._champion()
    begin(bench.layout, candidate(6), champion, rules)
    bench.runner.end_stale(7)
    assert current(bench.layout) is None
    begin(bench.layout, candidate(7), champion, rules)
    bench.runner.end_stale(7)
    assert current(bench.layout) is not None
    off = rules.model_copy(update={"mode": "off"})
    bench.run = bench.run.model_copy(update={"promote": bench.run.promote.model_copy(update={"canary": off})})
    bench.new_runner().end_stale(7)
    assert current(bench.layout) is None


def test_shadow_responses_of_every_replica_are_counted(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port, mode="shadow")
    folder = bench.layout.canary_answers(7)
    files = [EventFile(folder / name) for name in ("one.jsonl", "other.jsonl")]
    files[0].write(ShadowResponse(seconds=0.1, tokens=9, error=""))
    time.sleep(0.01)

    def happens(number: int) -> None:
        file = files[number % 2]
        file.write(ShadowResponse(seconds=0.1, tokens=10, error=""))
        if number % 5 == 0:
            file.write(ShadowResponse(seconds=0.1, tokens=0, error="status_500"))

    bench.happens = happens
    verdict, reasons = bench.judge()
    assert verdict is Verdict.PROMOTE
    # A response from before the start of the canary does not count.
    assert bench.rounds == 20
    assert reasons[1].startswith("shadow of v7: nothing against it")
    last = progress(bench)[-1]
    assert (last.answers, last.copies_failed) == (20, 4)


def test_a_torn_line_is_read_when_it_is_whole(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port, mode="shadow", min_answers=1)
    path = bench.layout.canary_answers(7) / "one.jsonl"
    path.parent.mkdir(parents=True)

    def happens(number: int) -> None:
        if number == 1:
            later = msgspec.json.encode(ShadowResponse(at_s=time.time() + 60, seconds=0.1, tokens=10, error="")) + b"\n"
            path.write_bytes(later[:20])
            bench.rest = later  # type: ignore[attr-defined]
        if number == 2:
            path.write_bytes(bench.rest)  # type: ignore[attr-defined]

    bench.happens = happens
    verdict, _ = bench.judge()
    assert verdict is Verdict.PROMOTE
    assert bench.rounds == 2


def test_a_rolled_back_candidates_record_is_not_a_release(tmp_path: Path, port: int):
    bench = Bench(tmp_path, port, max_hours=1e-5)
    bench.judge()
    assert not bench.layout.release(7).exists()
    assert bench._champion().policy_version == 3
