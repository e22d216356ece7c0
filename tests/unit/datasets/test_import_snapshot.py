"""The job: logs to a sealed snapshot, with a report of what was refused."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs import import_logs
from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import CaptureConfig
from sdpo_ray.curate.sampling import is_held_out
from sdpo_ray.datasets.import_report import ImportReport, NotImported
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.io.files import is_ready, read_json, require_ready
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Feedback, Interaction, Snapshot, Turn
from sdpo_ray.tables.snapshot_files import read_interactions, rows_digest
from tests.support.paths import SHARED_DATA

HH = SHARED_DATA / "hh_rlhf" / "derived" / "helpful-base_interactions.jsonl"
OASST = SHARED_DATA / "oasst" / "derived" / "en_100_interactions.jsonl"


def run(*arguments: object) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    app = typer.Typer()
    app.command()(import_logs.main)
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def triples(path: Path, n: int, *, language: str = "en") -> Path:
    rows = [
        {"prompt": f"Question {i}?", "completion": f"Answer {i}", "user_response": f"No, {i}.", "lang": language}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(out: Path) -> tuple[Snapshot, list[Interaction], list[Interaction], ImportReport]:
    require_ready(out)
    report = read_json(out / "refusals.json", ImportReport)
    return (
        read_json(out / "snapshot.json", Snapshot),
        read_interactions(out),
        read_interactions(out / "held_out"),
        report,
    )


def test_a_log_becomes_a_sealed_snapshot_like_those_of_the_training_loop(tmp_path: Path):
    status, output = run(triples(tmp_path / "[red] log.jsonl", 200), "--out", tmp_path / "s")
    assert status == 0
    snapshot, train, held_out, report = imported(tmp_path / "s")
    assert snapshot.interaction_ids == tuple(each.interaction_id for each in train)
    assert snapshot.held_out_ids == tuple(each.interaction_id for each in held_out)
    assert snapshot.path == str(tmp_path / "s")
    assert snapshot.digest == rows_digest(train)
    assert snapshot.last_interaction_at_s == max(each.follow_up_at_s for each in train)
    assert len(train) + len(held_out) == report.num_answers == 200
    assert f"{len(train)} interactions to learn from" in output
    assert "[red] log.jsonl: triples" in output


def test_no_conversation_is_both_learned_from_and_held_out(tmp_path: Path):
    run(triples(tmp_path / "log.jsonl", 400), "--out", tmp_path / "s", "--held-out", 0.25)
    _, train, held_out, _ = imported(tmp_path / "s")
    assert 60 <= len(held_out) <= 140
    assert all(is_held_out(each.conversation, 0.25) for each in held_out)
    assert not any(is_held_out(each.conversation, 0.25) for each in train)


def test_importing_twice_gives_the_same_snapshot_and_the_order_of_files_plays_no_part(tmp_path: Path):
    one, two = triples(tmp_path / "1.jsonl", 40), tmp_path / "2.jsonl"
    two.write_text(json.dumps({"messages": [{"role": r, "content": r} for r in ("user", "assistant", "user")]}) + "\n")
    run(one, two, "--out", tmp_path / "a", "--language", "any", "--limit", 30)
    run(two, one, "--out", tmp_path / "b", "--language", "any", "--limit", 30)
    run(one, two, "--out", tmp_path / "c", "--language", "any", "--limit", 30, "--seed", 1)
    a, b, c = (imported(tmp_path / name)[0] for name in "abc")
    assert a.interaction_ids == b.interaction_ids != c.interaction_ids
    assert set(a.interaction_ids) != set(c.interaction_ids)


def test_the_limit_draws_from_all_of_the_log_and_alike(tmp_path: Path):
    """Where each of 400 interactions lands over 20 seeds, 100 of them drawn with each: 5 +- 1.9 times each."""
    log = triples(tmp_path / "log.jsonl", 400)
    drawn: Counter[str] = Counter()
    for seed in range(20):
        run(log, "--out", tmp_path / str(seed), "--limit", 100, "--seed", seed, "--held-out", 0)
        _, train, _, report = imported(tmp_path / str(seed))
        assert len(train) == 100
        assert [(each.reason, each.n) for each in report.refused] == [(NotImported.NOT_DRAWN, 300)]
        drawn.update(each.turn.response for each in train)
    assert max(drawn.values()) <= 16
    quarters = [sum(drawn[f"Answer {i}"] for i in range(start, start + 100)) for start in range(0, 400, 100)]
    # Hypergeometric: mean 500 of 2000, standard deviation 17.
    assert all(abs(quarter - 500) < 100 for quarter in quarters)


def test_ten_thousand_copies_are_one_interaction(tmp_path: Path):
    log = triples(tmp_path / "log.jsonl", 2)
    log.write_text(log.read_text() * 5000)
    run(log, "--out", tmp_path / "s", "--held-out", 0)
    _, train, _, report = imported(tmp_path / "s")
    assert len(train) == 2
    assert [(each.reason, each.of, each.n) for each in report.refused] == [(NotImported.DUPLICATE, "answers", 9998)]


def test_everything_that_was_read_is_kept_or_counted_under_a_name(tmp_path: Path):
    def record(*words: str, **fields: object) -> str:
        chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(words)]
        return json.dumps({"messages": chat, "language": "en", **fields})

    rows = [
        record("Q", "A", "F", "B", "G"),
        "garbage",
        record("Q", "A"),
        record("Q", "A", "F", language="de"),
        record("Q", "A" * 5000, "F"),
        record("Q", " ", "F"),
        record("Q", "A", "F"),
        '{"messages": null}',
        "\x00\x01",
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(rows))
    status, output = run(tmp_path / "log.jsonl", "--out", tmp_path / "s", "--held-out", 0)
    assert status == 0
    _, train, _, report = imported(tmp_path / "s")
    assert (report.num_records, report.num_answers, len(train)) == (9, 4, 2)
    assert {each.reason: (each.of, each.n, round(each.share, 4)) for each in report.refused} == {
        NotImported.MALFORMED: ("records", 3, 0.3333),
        NotImported.TOO_FEW_MESSAGES: ("records", 1, 0.1111),
        NotImported.TOO_LONG_ANSWER: ("records", 1, 0.1111),
        NotImported.NOT_LANGUAGE: ("records", 1, 0.1111),
        NotImported.EMPTY_RESPONSE: ("answers", 1, 0.25),
        NotImported.DUPLICATE: ("answers", 1, 0.25),
    }
    assert report.sources[0].first_malformed == 2
    assert "the first malformed one is 2" in output
    for each in report.refused:
        assert each.reason in output


def test_the_users_messages_of_wildchat_alone_are_limited_unless_asked(tmp_path: Path):
    chat = [{"role": r, "content": text} for r, text in (("user", "Q" * 5000), ("assistant", "A"), ("user", "F"))]
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"conversation": chat, "conversation_hash": "h", "language": "English"}))
    status, output = run(log, "--out", tmp_path / "s", "--held-out", 0)
    assert status == 2
    assert NotImported.TOO_LONG_QUESTION in output
    assert run(log, "--out", tmp_path / "t", "--held-out", 0, "--max-question-chars", 5000)[0] == 0
    assert run(log, "--out", tmp_path / "u", "--held-out", 0, "--format", "wildfeedback")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.jsonl",), "no file nothing.jsonl"),
        (("log.jsonl", "--format", "json"), "there are wildchat, wildfeedback, openai, triples"),
        (("log.jsonl", "--language", "tlh"), "there are ar, de, en"),
        (("log.jsonl", "--format", "openai"), "nothing to learn from"),
        (("log.jsonl", "--language", "de"), "nothing to learn from"),
        (("odd.jsonl",), "only: title; give --format"),
        (("empty.jsonl",), "no record that can be read"),
        (("broken.json",), "record 2 of its array"),
    ],
)
def test_an_error_is_plain_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    triples(tmp_path / "log.jsonl", 3)
    (tmp_path / "odd.jsonl").write_text('garbage\n{"title": 1}\n')
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "broken.json").write_text('[{"messages": []}, {"mess')
    status, output = run(*arguments, "--out", "s")
    assert status == 2
    assert message in output
    assert not (tmp_path / "s").exists()


def test_a_directory_that_exists_is_never_replaced(tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "precious").touch()
    status, output = run(triples(tmp_path / "log.jsonl", 3), "--out", tmp_path / "s")
    assert (status, "exists: name a new directory" in " ".join(output.split())) == (2, True)
    assert (tmp_path / "s" / "precious").exists()
    assert not is_ready(tmp_path / "s")


def real(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"no real conversations: {path.name} is not beside the repository, in shared/data")
    return path


def test_the_conversations_of_hh_rlhf_are_all_kept_but_for_copies(tmp_path: Path):
    """3,449 triples of real people, 3,312 of them distinct; all in English."""
    run(real(HH), "--out", tmp_path / "s")
    _, train, held_out, report = imported(tmp_path / "s")
    rows = [json.loads(line) for line in HH.read_text().splitlines()]
    distinct = {json.dumps([row["prompt"][-5:], row["completion"], row["user_response"]]) for row in rows}
    assert len(train) + len(held_out) == len(distinct) == 3312
    assert [(each.reason, each.n) for each in report.refused] == [(NotImported.DUPLICATE, len(rows) - len(distinct))]
    assert 0.05 < len(held_out) / len(distinct) < 0.15


def test_the_conversations_of_open_assistant_are_all_kept_but_for_one_long_answer(tmp_path: Path):
    run(real(OASST), "--out", tmp_path / "s")
    _, train, held_out, report = imported(tmp_path / "s")
    rows = list(map(json.loads, OASST.read_text().splitlines()))
    assert [(each.reason, each.n) for each in report.refused] == [(NotImported.TOO_LONG_ANSWER, 1)]
    assert sum(len(row["completion"]["content"]) > 4096 for row in rows) == 1
    by_words = {(row["completion"]["content"], row["user_response"]["content"]): row["prompt"] for row in rows}
    assert len(train) + len(held_out) == len(by_words) - 1 == 379
    for each in train:
        prompt = [message["content"] for message in by_words[each.turn.response, each.follow_up]]
        assert [message.content for message in each.turn.messages] == prompt[-5:]


def written(tmp_path: Path, *files: Path, **settings: str) -> list[Turn | Feedback]:
    """The events of a run that these logs were written into."""
    root = tmp_path / "run"
    overrides = [f"root={root}", *(f"{name}={value}" for name, value in settings.items())]
    changes = [part for each in overrides for part in ("--set", each)]
    status, output = run(*files, "--into", LAPTOP, "--language", "any", *changes)
    assert status == 0, output
    log = open_log(Layout(root), CaptureConfig())
    return list(log.poll({}, max_events=10_000, max_bytes=1 << 30).events)


def test_a_log_can_be_written_into_a_run_as_turns_and_what_was_said_of_them(tmp_path: Path):
    events = written(tmp_path, triples(tmp_path / "log.jsonl", 30))
    turns = {event.turn_id: event for event in events if isinstance(event, Turn)}
    comments = [event for event in events if isinstance(event, Feedback)]
    assert len(turns) == len(comments) == 30
    said = sorted(
        (turns[each.turn_id].messages[-1].content, turns[each.turn_id].response, each.comment) for each in comments
    )
    assert said == sorted((f"Question {i}?", f"Answer {i}", f"No, {i}.") for i in range(30))
    assert all(turn.text_only and turn.keys.conversation and not turn.keys.continuation for turn in turns.values())


def test_a_log_that_states_no_time_counts_as_said_now(tmp_path: Path):
    before = time.time()
    times = [
        event.finished_at_s
        for event in written(tmp_path, triples(tmp_path / "log.jsonl", 3))
        if isinstance(event, Turn)
    ]
    assert all(before <= at_s <= time.time() for at_s in times)


def test_what_is_written_into_a_run_twice_has_the_same_ids(tmp_path: Path):
    log = triples(tmp_path / "log.jsonl", 5)
    ids = Counter(getattr(event, "feedback_id", event.turn_id) for _ in range(2) for event in written(tmp_path, log))
    # Read once after the first import, and twice after the second.
    assert set(ids.values()) == {3}


def test_a_log_is_redacted_and_its_users_are_pseudonyms_before_it_is_written_into_a_run(tmp_path: Path):
    record = {
        "user": "anna@example.org",
        "prompt": "Mail bob@example.org",
        "completion": "Done.",
        "user_response": "Not bob@example.org, carl@example.org",
    }
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(record) + "\n")
    turn, comment = written(tmp_path, log)
    assert isinstance(turn, Turn)
    assert isinstance(comment, Feedback)
    assert (turn.messages[-1].content, comment.comment) == ("Mail [email]", "Not [email], [email]")
    assert turn.user == comment.user != ""
    on_disk = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert b"example.org" not in on_disk


def test_either_a_snapshot_or_a_run_is_named(tmp_path: Path):
    log = triples(tmp_path / "log.jsonl", 3)
    for arguments in ([], ["--out", tmp_path / "s", "--into", LAPTOP], ["--out", tmp_path / "s", "--set", "seed=1"]):
        status, output = run(log, *arguments)
        assert status == 2
        assert "--out" in output or "--into" in output


def test_a_table_of_numbers_is_refused_by_name_and_the_rest_is_written(tmp_path: Path):
    rows = [
        {"prompt": prompt, "completion": "Done.", "user_response": "No."}
        for prompt in ("2+2?", "4711 " * 15_000, "3+3?")
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = ["--set", f"root={tmp_path / 'run'}", "--language", "any"]
    status, output = run(log, "--into", LAPTOP, *changes)
    assert status == 0
    assert "refused: too_many_digits: 1" in output
    assert "2 interactions of 3 records are in the event log" in output.replace("\n", " ")
