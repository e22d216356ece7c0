"""`jobs/export.py` as a person runs it: which rows, into which file."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from jobs import export, import_logs
from sdpo_ray.chat import ChatFormat
from sdpo_ray.datasets import export_query
from sdpo_ray.datasets.export_rows import SCHEMAS, ExportKind
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Feedback, Interaction, Thumb
from sdpo_ray.tables.arrow_schemas import feedback_to_arrow, interactions_to_arrow, turns_to_arrow
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.snapshot_files import read_interactions
from tests.support.builders import interaction, snapshot, with_turn
from tests.support.paths import CHECKPOINT

DAY_S = 86_400.0


def made(number: int) -> Interaction:
    """Interaction `t007` of the eighth day of 1970; every third is of another tenant, every other by v1."""
    asked = interaction(ChatFormat(CHECKPOINT), name=f"t{number:03d}", prompt=f"Question {number}?")
    (span,) = asked.turn.version_spans
    changed = with_turn(
        asked,
        tenant="other" if number % 3 == 0 else "tenant",
        version_spans=(replace(span, policy_version=number % 2),),
        user="k1.ada",
    )
    return replace(changed, follow_up_at_s=number * DAY_S)


@pytest.fixture(scope="module")
def interactions() -> list[Interaction]:
    return [made(number) for number in range(30)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, interactions: list[Interaction]) -> Path:
    layout = Layout(tmp_path_factory.mktemp("run"))
    for start in range(0, 30, 6):
        batch = interactions[start : start + 6]
        Table.turns(layout).append(turns_to_arrow([each.turn for each in batch]), {})
        Table.interactions(layout).append(interactions_to_arrow(batch), {})
    given = [
        feedback("t001", edited="Paris."),
        feedback("t002", thumb=Thumb.DOWN),
        feedback("t003", edited="Rome.", thumb=Thumb.UP, tenant="other"),
        feedback("t004", edited="Paris"),
        feedback("t005", edited="Madrid.", tenant="stranger"),
        feedback("gone", edited="Oslo."),
        feedback("t007", comment="Too long."),
        feedback("t008", edited="Bern.", consent=Consent.NONE),
    ]
    Table.feedback(layout).append(feedback_to_arrow(given), {})
    return layout.root


def feedback(turn_id: str, *, tenant: str = "tenant", consent: Consent = Consent.TRAIN, **said: Any) -> Feedback:
    given_at_s = 40 * DAY_S
    return Feedback(
        feedback_id=f"f-{turn_id}",
        turn_id=turn_id,
        tenant=tenant,
        user="",
        consent=consent,
        given_at_s=given_at_s,
        **said,
    )


def run(job: Any, *arguments: object) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    app = typer.Typer()
    app.command()(job)
    done = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def exported(root: Path, out: Path, *arguments: object) -> list[dict[str, Any]]:
    status, output = run(export.main, "--set", f"root={root}", "--out", out, *arguments)
    assert status == 0, output
    if out.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    else:
        text = gzip.decompress(out.read_bytes()) if out.suffix == ".gz" else out.read_bytes()
        rows = [json.loads(line) for line in text.splitlines()]
    assert f"{len(rows)} " in output
    return rows


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["turn_id"] for row in rows]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_every_interaction_is_there_once_the_oldest_first(root: Path, tmp_path: Path, name: str):
    rows = exported(root, tmp_path / "new" / name)
    assert ids(rows) == [f"t{number:03d}" for number in range(30)]
    assert rows[7]["prompt"][0]["content"] == "Question 7?"
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name], "nothing is left aside"
    if name.endswith("parquet"):
        assert pq.read_schema(tmp_path / "new" / name).equals(SCHEMAS[ExportKind.INTERACTIONS])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--since", "1970-01-28"), [27, 28, 29]),
        (("--until", "1970-01-03"), [0, 1]),
        (("--since", "1970-01-06T00:00:00+00:00", "--until", "1970-01-07T00:00:01"), [5, 6]),
        (("--since", "1970-01-06T02:00:00+02:00", "--until", "1970-01-07"), [5]),
        (("--tenant", "other", "--limit", 3), [0, 3, 6]),
        (("--policy-version", 1, "--since", "1970-01-26"), [25, 27, 29]),
        (("--limit", 7), [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_filters_take_what_they_say(root: Path, tmp_path: Path, arguments: tuple[object, ...], expected: list[int]):
    rows = exported(root, tmp_path / "rows.jsonl", *arguments)
    assert ids(rows) == [f"t{number:03d}" for number in expected]


def test_few_rows_at_a_time_are_the_same_rows(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):

    whole = exported(root, tmp_path / "whole.jsonl")
    monkeypatch.setattr(export_query, "_ROWS_AT_ONCE", 1)
    assert exported(root, tmp_path / "parts.jsonl") == whole
    assert len(exported(root, tmp_path / "cut.jsonl", "--limit", 8)) == 8


def test_a_snapshot_is_exported_in_the_order_of_training(root: Path, tmp_path: Path, interactions: list[Interaction]):
    order = [interactions[n] for n in (9, 2, 27, 14)]
    drawn = snapshot(tmp_path / "c0001", order)
    write_json(tmp_path / "c0001" / "snapshot.json", drawn)
    there = ["--snapshot", tmp_path / "c0001"]
    assert ids(exported(root, tmp_path / "rows.parquet", *there)) == ["t009", "t002", "t027", "t014"]
    assert ids(exported(root, tmp_path / "v1.jsonl", *there, "--policy-version", 1)) == ["t009", "t027"]
    assert ids(exported(root, tmp_path / "one.jsonl", *there, "--limit", 1)) == ["t009"]


def test_edited_answers_become_preferences_and_the_others_are_counted(root: Path, tmp_path: Path):
    arguments = ("--set", f"root={root}", "--what", "preferences", "--out", tmp_path / "dpo.jsonl")
    status, output = run(export.main, *arguments)
    assert status == 0, output
    rows = [json.loads(line) for line in (tmp_path / "dpo.jsonl").read_text().splitlines()]
    assert [(row["turn_id"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        ("t001", "Paris.", "Paris"),
        ("t003", "Rome.", "Paris"),
    ]
    for reason in ("unedited: 1", "not_theirs: 1", "unknown_turn: 1", "no_consent: 1"):
        assert f"left out: {reason}" in output
    odd = exported(root, tmp_path / "odd.jsonl", "--what", "preferences", "--tenant", "other")
    assert ids(odd) == ["t003"]


def test_thumbs_become_labels(root: Path, tmp_path: Path):
    rows = exported(root, tmp_path / "kto.parquet", "--what", "labels")
    assert [(row["turn_id"], row["label"]) for row in rows] == [("t002", False), ("t003", True)]
    even = exported(root, tmp_path / "even.jsonl", "--what", "labels", "--policy-version", 0)
    assert ids(even) == ["t002"]


def test_what_is_exported_our_own_importer_reads(root: Path, tmp_path: Path, interactions: list[Interaction]):
    exported(root, tmp_path / "rows.jsonl.gz")
    everything = ("--language", "any", "--max-messages", 1000, "--held-out", 0)
    status, output = run(import_logs.main, tmp_path / "rows.jsonl.gz", "--out", tmp_path / "s", *everything)
    assert status == 0, output
    found = {(each.turn.messages, each.turn.response, each.follow_up) for each in read_interactions(tmp_path / "s")}
    assert found == {(each.turn.messages, each.turn.response, each.follow_up) for each in interactions}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --out FILE"),
        (("--out", "rows.csv"), "rows.csv has no known format"),
        (("--out", "rows.jsonl", "--what", "tokens"), "there are interactions, preferences, labels"),
        (("--out", "rows.jsonl", "--since", "yesterday"), "'yesterday' is no ISO 8601 date or time"),
        (("--out", "rows.jsonl", "--tenant", "nobody"), "nothing to export"),
        (("--out", "rows.jsonl", "--what", "labels", "--snapshot", "s"), "a snapshot has interactions alone"),
        (("--out", "rows.jsonl", "--snapshot", "s"), "s has no READY marker"),
        (("--out", "there.jsonl"), "there.jsonl exists: name a new file"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
):
    monkeypatch.chdir(tmp_path)
    Path("there.jsonl").write_text("mine")
    status, output = run(export.main, "--set", f"root={root}", *arguments)
    assert status == 2
    assert words in output
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]
    assert Path("there.jsonl").read_text() == "mine"


def test_a_run_without_tables_is_named_and_none_are_made(tmp_path: Path):
    for what in ExportKind:
        arguments = ("--set", f"root={tmp_path / 'run'}", "--out", tmp_path / "rows.jsonl", "--what", what.value)
        status, output = run(export.main, *arguments)
        assert status == 2
        assert "there is no table" in output
    assert list(tmp_path.iterdir()) == []
