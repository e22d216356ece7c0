"""Reading the journal: limits, order, positions, and segments that go."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.errors import CorruptLog
from sdpo_ray.eventlog.codec import encode
from sdpo_ray.eventlog.journal.log import JournalLog
from tests.support.conversations import turn
from tests.support.journals import MIB, feedback, files, ids, read_all, write


def test_turns_and_feedback_are_read_back_in_order(tmp_path):
    events = [turn("t0", "question \u00e9\U0001f600"), feedback("f0"), turn("t1")]
    write(tmp_path, *events)
    assert read_all(tmp_path) == events


@given(
    st.lists(
        st.tuples(st.text(), st.lists(st.floats(allow_nan=False), min_size=2, max_size=2)), min_size=1, max_size=8
    ),
    st.sampled_from([1, 700, MIB]),
    st.integers(1, 5),
)
@settings(deadline=None, max_examples=40)
def test_any_text_and_any_float_is_read_back_exactly_in_polls_of_any_size(
    tmp_path_factory, rows, segment_bytes, max_events
):
    turns = [turn(f"t{n}", text, response_logprobs=tuple(floats)) for n, (text, floats) in enumerate(rows)]
    directory = tmp_path_factory.mktemp("journal")
    write(directory, *turns, segment_bytes=segment_bytes)
    log, read, after = JournalLog(directory, segment_bytes=MIB), [], {}
    while True:
        batch = log.poll(after, max_events=max_events, max_bytes=MIB)
        assert len(batch.events) <= max_events
        assert all(position > after.get(name, 0) for name, position in batch.positions.items())
        read += batch.events
        after |= batch.positions
        if not batch.events:
            break
    assert read == turns
    assert batch.at_end == set(log.partitions())


def test_a_process_is_one_partition_however_many_segments_it_writes(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(5)), segment_bytes=700)
    write(tmp_path, turn("t5"))
    assert len(files(tmp_path)) == 6
    log = JournalLog(tmp_path, segment_bytes=MIB)
    assert len(log.partitions()) == 2
    assert log.partitions() == sorted(log.partitions())
    assert sorted(ids(read_all(tmp_path))) == ["t0", "t1", "t2", "t3", "t4", "t5"]


def test_a_poll_keeps_to_its_limits_but_gives_one_event_at_least(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(4)))
    log, size = JournalLog(tmp_path, segment_bytes=MIB), len(encode(turn("t0")))
    assert len(log.poll({}, max_events=3, max_bytes=MIB).events) == 3
    assert len(log.poll({}, max_events=9, max_bytes=2 * size).events) == 2
    assert len(log.poll({}, max_events=9, max_bytes=3 * size - 1).events) == 2
    assert len(log.poll({}, max_events=9, max_bytes=1).events) == 1
    assert log.poll({}, max_events=4, max_bytes=MIB).at_end == set(log.partitions())
    assert log.poll({}, max_events=3, max_bytes=MIB).at_end == set()


def test_partitions_are_read_in_turn_so_that_a_busy_one_starves_no_other(tmp_path):
    for name in "abc":
        write(tmp_path, *(turn(f"{name}{n}") for n in range(50 if name == "a" else 2)))
    log = JournalLog(tmp_path, segment_bytes=MIB)
    assert {name[0] for name in ids(list(log.poll({}, max_events=3, max_bytes=MIB).events))} == {"a", "b", "c"}
    after: dict[str, int] = {}
    first = []
    for _ in range(6):
        batch = log.poll(after, max_events=1, max_bytes=MIB)
        after |= batch.positions
        first += ids(list(batch.events))
    assert {"a", "b", "c"} == {name[0] for name in first}


def test_a_partition_is_at_its_end_only_when_a_look_found_nothing_more(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    (name,) = journal.partitions()
    batch = journal.poll({}, max_events=9, max_bytes=MIB)
    assert (ids(list(batch.events)), batch.at_end) == (["t0"], {name})
    again = journal.poll(batch.positions, max_events=9, max_bytes=MIB)
    assert (again.events, again.positions, again.at_end) == ((), {}, {name})
    journal.append(turn("t1")).result(timeout=10)
    assert ids(list(journal.poll(batch.positions, max_events=9, max_bytes=MIB).events)) == ["t1"]
    journal.close()


def test_a_partition_that_another_reader_removed_is_at_its_end(tmp_path):
    write(tmp_path, turn("t0"))
    log = JournalLog(tmp_path, segment_bytes=MIB)
    gone = log.poll({}, max_events=9, max_bytes=MIB).positions
    log.truncate(gone)
    batch = log.poll(gone, max_events=9, max_bytes=MIB)
    assert (batch.events, batch.positions, batch.at_end) == ((), {}, gone.keys())


def test_a_directory_that_does_not_exist_is_an_empty_log(tmp_path):
    log = JournalLog(tmp_path / "none", segment_bytes=MIB)
    assert log.partitions() == []
    assert log.poll({}, max_events=1, max_bytes=1).events == ()
    log.truncate({})
    assert log.backlog_bytes({}) == 0
    log.close()
    assert not (tmp_path / "none").exists()


def test_only_sealed_segments_that_were_read_to_the_end_are_removed(tmp_path):
    write(tmp_path, turn("t0"), turn("t1"), turn("t2"), segment_bytes=1)
    living = JournalLog(tmp_path, segment_bytes=MIB)
    living.append(turn("t3")).result(timeout=10)
    log = JournalLog(tmp_path, segment_bytes=MIB)
    dead, alive = log.partitions()
    log.truncate({})
    assert len(files(tmp_path)) == 4
    log._polls = 1  # So that the dead one's events come first.
    half = log.poll({}, max_events=3, max_bytes=MIB).positions
    log.truncate({dead: half[dead]})
    assert ids(read_all(tmp_path, half)) == ["t2"]
    assert len(files(tmp_path)) == 2
    log.truncate(log.poll({}, max_events=9, max_bytes=MIB).positions | {alive: half[alive]})
    assert log.partitions() == [alive]
    living.close()
    log.truncate({alive: half[alive]})
    assert log.partitions() == []


def test_a_living_writer_keeps_its_segment_though_all_of_it_was_read(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    journal.truncate(journal.poll({}, max_events=9, max_bytes=MIB).positions)
    after = journal.poll({}, max_events=9, max_bytes=MIB).positions
    journal.append(turn("t1")).result(timeout=10)
    assert ids(read_all(tmp_path, after)) == ["t1"]
    journal.close()


def test_a_journal_that_is_only_read_starts_no_thread(tmp_path):
    before = threading.active_count()
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.poll({}, max_events=1, max_bytes=1)
    assert threading.active_count() == before
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_two_readers_at_once_both_see_all_of_it(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(30)), segment_bytes=1000)
    one, two = (JournalLog(tmp_path, segment_bytes=MIB) for _ in range(2))
    first, second = (each.poll({}, max_events=12, max_bytes=MIB) for each in (one, two))
    assert first == second
    one.truncate(first.positions)
    # The other one has not stored what it read yet, and goes on from where it was.
    assert ids(read_all(tmp_path, second.positions)) == [f"t{n}" for n in range(12, 30)]
    late = two.poll({}, max_events=99, max_bytes=MIB)
    assert set(ids(list(late.events))) >= {f"t{n}" for n in range(12, 30)}


def test_a_corrupt_acknowledged_frame_stops_the_reader_with_an_error(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(3)))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    log = JournalLog(tmp_path, segment_bytes=MIB)
    with pytest.raises(CorruptLog, match="is broken, those after it are not"):
        log.poll({}, max_events=9, max_bytes=MIB)
    log.truncate({})
    assert files(tmp_path) == [path]
