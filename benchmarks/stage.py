"""The curation stage alone: a journal of 3 kB turns -> Delta tables -> admitted interactions, on a local Ray Data.

Every conversation has two turns, so half of the turns have a follow-up. Ray, its workers and the code are warm, as in a
training loop that runs for weeks; the journal is written before the clock starts.
`benchmarks/capture.py` runs it.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.capture.pairing_keys import pairing_keys
from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.ingest import ingest
from sdpo_ray.curate.pairing_index import index
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import BASE_VERSION, Consent, FinishReason, Message, Role, Sampling, Turn, VersionSpan

CHARS, TOKENS = 420, 64
"""Characters of each message, and tokens of each prompt and answer: about 3 kB a turn in the log."""
CURATE = CurateConfig(max_per_user_hour=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Seconds for one backlog, by step."""

    num_turns: int
    num_interactions: int
    ingest_s: float
    index_s: float
    decide_s: float

    @property
    def rows_per_s(self) -> float:
        """Turns a second."""
        return self.num_turns / (self.ingest_s + self.index_s + self.decide_s)


def measure(num_turns: int, rounds: int, on_round: Callable[[Stage], None] = lambda stage: None) -> list[Stage]:
    """Curate `num_turns` turns in each round, from empty tables. Starts Ray unless it runs."""
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    _once(2000)
    done = []
    for _ in range(rounds):
        done.append(_once(num_turns))
        on_round(done[-1])
    return done


def rows_per_s(stages: Sequence[Stage]) -> float:
    """Turns a second from the journal to admitted interactions: the median."""
    return statistics.median(each.rows_per_s for each in stages)


def _once(num_turns: int) -> Stage:
    with tempfile.TemporaryDirectory() as directory:
        layout = Layout(Path(directory))
        _write(layout, num_turns)
        log = open_log(layout, CaptureConfig())
        curator = Curator(layout, log, curate=CURATE, capture=CaptureConfig())
        began = time.perf_counter()
        ingest(
            log,
            curator.turns,
            curator.feedback,
            max_turns=CURATE.max_batch_turns,
            max_bytes=CURATE.max_batch_mib << 20,
            erased=lambda event: False,
        )
        ingested = time.perf_counter()
        index(curator.turns, curator.pending)
        indexed = time.perf_counter()
        progress = curator.advance()
        done = time.perf_counter()
        assert (progress.turns_total, progress.interactions_total) == (num_turns, num_turns // 2)
        return Stage(
            num_turns=num_turns,
            num_interactions=progress.interactions_total,
            ingest_s=ingested - began,
            index_s=indexed - ingested,
            decide_s=done - indexed,
        )


def _write(layout: Layout, num_turns: int) -> None:
    log = open_log(layout, CaptureConfig())
    for durable in [log.append(turn) for turn in _turns(num_turns)]:
        durable.result()
    log.close()


def _turns(num_turns: int) -> Iterator[Turn]:
    """Conversations of two turns, each with a different first question."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(2000)]
    now_s = time.time() - 3600

    def text() -> str:
        return " ".join(rng.choices(words, k=CHARS // 6))[:CHARS]

    for number in range(num_turns // 2):
        question = Message(role=Role.USER, content=f"{number} {text()}")
        first = _turn(f"{number:08d}-0", (question,), text(), rng, now_s)
        answer = Message(role=Role.ASSISTANT, content=first.response)
        yield first
        yield _turn(
            f"{number:08d}-1", (question, answer, Message(role=Role.USER, content=text())), text(), rng, now_s + 9
        )


def _turn(name: str, messages: tuple[Message, ...], response: str, rng: random.Random, at_s: float) -> Turn:
    user = f"0badcafe.{int(name[:8]) % 1000:032x}"
    tenant = "default"
    keys = pairing_keys(
        key=b"benchmark", tenant=tenant, user=user, conversation_id="", messages=messages, response=response
    )
    return Turn(
        turn_id=name,
        consent=Consent.TRAIN,
        prompt_ids=tuple(rng.choices(range(150_000), k=TOKENS)),
        response_ids=tuple(rng.choices(range(150_000), k=TOKENS)),
        response_logprobs=tuple(-rng.random() for _ in range(TOKENS)),
        version_spans=(VersionSpan(policy_version=BASE_VERSION, start=0, end=TOKENS),),
        finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=TOKENS, seed=None),
        started_at_s=at_s,
        finished_at_s=at_s + 1,
        keys=keys,
        tenant=tenant,
        user=user,
        conversation_id="",
        messages=messages,
        response=response,
    )
