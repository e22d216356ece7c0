"""After an erasure no byte of the user is on disk: every file of a run is searched, raw and decoded."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from confluent_kafka import Producer

from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import Run, load_run, parse_run
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.curate.snapshot import draw_snapshot
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.io.files import read_json, sealed_directory, write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy.data_subject import find_data_subject
from sdpo_ray.privacy.erasure import Erasure
from sdpo_ray.privacy.user_footprint import UserTables
from sdpo_ray.promote.registry import Registry
from sdpo_ray.records import BASE_VERSION, Candidate, Interaction, Verdict, version_of_cycle
from sdpo_ray.tables.arrow_schemas import interactions_to_arrow, turns_to_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.snapshot_files import read_interactions
from tests.support.conversations import dialogue, turn
from tests.support.cycle_records import entry
from tests.support.journals import append_all
from tests.support.paths import REPOSITORY
from tests.support.serving import Served
from tests.support.user_data import hits, pseudonym, signal, write_cycle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
VICTIM = "mallory@victims.example.org"
SECRET = "xylophonic"
CYCLE = 77
"""A cycle number of this test alone: the tests of a session share a root."""


def say(served: Served, user: str, *texts: str, metadata: dict[str, str] | None = None) -> tuple[str, str]:
    """Send one chat. Returns the answer and its turn's id."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    body: dict[str, Any] = {"model": "policy", "messages": messages, "user": user, "max_tokens": 8}
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    reply.raise_for_status()
    return reply.json()["choices"][0]["message"]["content"], reply.headers["x-sdpo-turn-id"]


def talk(served: Served, user: str, word: str) -> str:
    """Send a question, a follow-up and a comment. Returns the id of the question's turn."""
    question = f"What is the {word} capital of France? I am {user}"
    answer, asked = say(served, user, question)
    say(served, user, question, answer, f"shorter, says {word}")
    comment = {"turn_id": asked, "comment": f"too {word} for me", "user": user}
    httpx.post(f"{served.url}/v1/feedback", json=comment, timeout=60).raise_for_status()
    return asked


def finish_cycle(served: Served, run: Run, curator: Curator) -> None:
    """Write a cycle's records to disk and to MLflow, with the attribution of all that it drew; nothing is trained."""
    layout = served.layout
    drawn = draw_snapshot(
        curator.interactions,
        layout.snapshot(CYCLE),
        champion_version=BASE_VERSION,
        seed=1,
        now_s=time.time(),
        last_batch=0,
        config=replace_held_out(run),
    )
    signals = tuple(map(signal, read_interactions(layout.snapshot(CYCLE))))
    made = entry(CYCLE, root=layout.root)
    candidate = replace(
        made.candidate, parent_version=BASE_VERSION, snapshot_id=drawn.snapshot_id, attributions=signals
    )
    with sealed_directory(layout.candidate(version_of_cycle(CYCLE))) as aside:
        write_json(aside / "candidate.json", candidate)
    write_cycle(layout, CYCLE, drawn, parent=BASE_VERSION, verdict=Verdict.HOLD)
    write_json(layout.cycle(CYCLE) / "distill.json", candidate)
    registry = Registry(layout, model_name=run.promote.model_name)
    for cycle in (CYCLE, CYCLE + 1):
        registry.record_cycle(replace(made, cycle=cycle, run=run, snapshot=drawn, candidate=candidate))
    # Deleting a run in MLflow's page leaves its artifacts on disk.
    (run,) = registry.tracking.find(registry.tracking.experiment("policy"), cycle=str(CYCLE + 1))
    registry.tracking.delete(run, tags=())


def replace_held_out(run: Run) -> Any:
    return run.curate.model_copy(update={"held_out": 0.0, "max_user_share": 1.0})


def test_an_erasure_on_a_served_run_leaves_nothing_of_the_user(served: Served, ray_cluster: str):
    layout = served.layout
    run = load_run(LAPTOP, served.overrides)
    bystanders = talk(served, "bystander", "bystanding")
    victims = talk(served, VICTIM, SECRET)
    curator = Curator(layout, open_log(layout, run.capture), curate=run.curate, capture=run.capture)
    curator.advance()
    curator.advance()
    assert victims in curator.interactions.read(["interaction_id"])["interaction_id"].to_pylist()
    finish_cycle(served, run, curator)
    say(served, VICTIM, f"This is in the log alone: {SECRET}")
    words = (SECRET, VICTIM, "mallory", pseudonym(layout, VICTIM))
    before = hits(layout.root, words)
    for place in ("journal", "tables/turns", "tables/interactions", "tables/feedback", "snapshots", "candidates"):
        assert any(name.startswith(place) for name in before), place
    assert any(name.endswith("attributions.html") for name in before)
    assert any(name.startswith("cycles") for name in before)

    overrides = [argument for each in served.overrides for argument in ("--set", each)]
    argv = [sys.executable, "jobs/erase.py", "--run", str(LAPTOP), *overrides, "--user", VICTIM, "--yes"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    erased = json.loads(done.stdout)
    assert erased["rows"] == {"interactions": 2, "feedback": 1, "pending": 2, "turns": 2}
    assert (erased["mlflow_runs"], len(erased["records"])) == (2, 2)
    assert [each["policy_version"] for each in erased["learned"]] == [version_of_cycle(CYCLE)]

    assert hits(layout.root, words) == {}
    assert logs_that_hold(words) == []
    assert any("bystanding" in words for words in hits(layout.root, ["bystanding"]).values())
    curator.interactions.refresh()
    left = curator.interactions.read(["interaction_id"])["interaction_id"].to_pylist()
    assert bystanders in left
    shown = read_json(layout.cycle(CYCLE) / "distill.json", Candidate).attributions
    assert {each.interaction_id for each in shown} <= set(left)
    assert shown
    pages = [path for path in layout.root.glob("mlartifacts/**/attributions.html") if "bystanding" in path.read_text()]
    assert len(pages) == 2
    assert all(read_json(page.with_name("candidate.json"), Candidate).attributions == shown for page in pages)


def logs_that_hold(words: tuple[str, ...]) -> list[str]:
    """Files of this Ray session, logs included, that hold one of the words."""
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [path for path in session.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    return [str(path) for path in files if any(word.encode() in path.read_bytes() for word in words)]


PEOPLE = 100
CONVERSATIONS = 134
"""Conversations of each user: two turns and their interaction."""


def crowd(layout: Layout) -> str:
    """Write rows of many users in ten batches. Returns the pseudonym of one of them, the victim."""
    tables = UserTables.of(layout)
    names = {number: pseudonym(layout, VICTIM if number == 7 else f"person-{number}") for number in range(PEOPLE)}
    made = 0
    for batch in range(10):
        turns, interactions = [], []
        for index in range(batch, CONVERSATIONS, 10):
            for number, name in names.items():
                who = f"{SECRET} {VICTIM}" if number == 7 else f"person {number}"
                first = turn(f"t{number}-{index}-0", f"question {index} of {who}", user=name, at_s=100.0 + made)
                said = (*first.messages, *first.messages)
                second = replace(first, turn_id=f"t{number}-{index}-1", messages=said, started_at_s=105.0 + made)
                turns += [first, second]
                interactions.append(
                    Interaction(
                        interaction_id=first.turn_id,
                        turn=first,
                        follow_up=f"shorter, says {who}",
                        follow_up_turn_id=second.turn_id,
                        follow_up_at_s=second.started_at_s,
                        conversation=first.keys.conversation,
                    )
                )
        tables.turns.append(turns_to_arrow(turns), {"p0": batch + 1})
        tables.interactions.append(interactions_to_arrow(interactions), {"pending.decided": batch + 1})
        made += len(turns)
    return names[7]


def rows(table: Table, name: str, victim: str | None = None) -> pa.Table:
    """All rows in the order of their ids, without those of `victim`."""
    table.refresh()
    everything = table.read([*table_columns(table), "batch"]).sort_by(name)
    return everything if victim is None else everything.filter(pc.not_equal(everything["user"], victim))


def table_columns(table: Table) -> list[str]:
    return table.read().schema.names


def test_an_erasure_of_forty_thousand_rows_removes_the_victims_and_curation_continues(tmp_path, ray_cluster):
    layout = Layout(tmp_path / "run")
    victim = crowd(layout)
    tables = UserTables.of(layout)
    assert tables.turns.num_rows + tables.interactions.num_rows >= 40_000
    kept = rows(tables.turns, "turn_id", victim), rows(tables.interactions, "interaction_id", victim)
    words = (SECRET, VICTIM, "mallory", victim)
    assert len(hits(layout.root, words)) >= 20
    run = parse_run({"root": str(layout.root)})
    with Erasure(
        run, find_data_subject(layout, tenant="default", user=VICTIM, turn_ids=()), lambda said: None
    ) as erasure:
        erased = erasure.execute()
    assert (erased.rows["turns"], erased.rows["interactions"]) == (2 * CONVERSATIONS, CONVERSATIONS)
    assert hits(layout.root, words) == {}
    assert rows(tables.turns, "turn_id").equals(kept[0])
    assert rows(tables.interactions, "interaction_id").equals(kept[1])
    assert (tables.turns.position("p0"), tables.interactions.position("pending.decided")) == (10, 10)

    journal = JournalLog(layout.journal, segment_bytes=1 << 20)
    append_all(journal, dialogue("later", at_s=time.time()))
    journal.close()
    curator = Curator(layout, open_log(layout, run.capture), curate=run.curate, capture=run.capture)
    curator.advance()
    curator.advance()
    assert "later-0" in curator.interactions.read(["interaction_id"])["interaction_id"].to_pylist()


def test_on_kafka_what_an_erased_user_left_never_enters_the_tables(tmp_path):
    host = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    brokers = ",".join(f"{each.host}:{each.port}" for each in host.list_topics(timeout=10).brokers.values())
    kafka = {"brokers": brokers, "options": {"log_level": "0"}}
    run = parse_run({"root": str(tmp_path), "capture": {"kafka": kafka}})
    layout = run.layout
    log = open_log(layout, run.capture)
    said = [turn("theirs", user=pseudonym(layout, VICTIM)), turn("other", user=pseudonym(layout, "ann"))]
    append_all(log, said)
    log.close()
    with Erasure(
        run, find_data_subject(layout, tenant="default", user=VICTIM, turn_ids=()), lambda said: None
    ) as erasure:
        erased = erasure.execute()
    # The mock does not support DeleteRecords, so the topic still holds it.
    assert erased.events_in_log is None
    assert Table.turns(layout).read(["turn_id"])["turn_id"].to_pylist() == ["other"]
