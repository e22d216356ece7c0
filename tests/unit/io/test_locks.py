import threading
import time

import pytest

from sdpo_ray.io.locks import data_lock
from sdpo_ray.io.paths import Layout


def test_one_process_at_a_time_has_the_lock_and_the_other_reports_that_it_waits(tmp_path):
    layout, waits, order = Layout(tmp_path / "new"), threading.Event(), []

    def other() -> None:
        with data_lock(layout, waits.set):
            order.append("other")

    with data_lock(layout):
        thread = threading.Thread(target=other)
        thread.start()
        assert waits.wait(timeout=10)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "other"]


def test_a_waiting_process_comes_before_one_that_acquires_again_at_once(tmp_path):
    layout, waits, stop, turns, got = Layout(tmp_path), threading.Event(), threading.Event(), [], []

    def greedy() -> None:
        while not stop.is_set():
            with data_lock(layout):
                turns.append(len(got))
                time.sleep(0.01)

    thread = threading.Thread(target=greedy)
    thread.start()
    while not turns:
        time.sleep(0.001)
    for _ in range(5):
        before = len(turns)
        with data_lock(layout, waits.set):
            got.append(len(turns) - before)
    stop.set()
    thread.join(timeout=10)
    assert waits.is_set()
    assert max(got) <= 2


def test_an_error_in_the_block_releases_the_lock(tmp_path):
    layout = Layout(tmp_path)
    with pytest.raises(ZeroDivisionError), data_lock(layout):
        raise ZeroDivisionError
    with data_lock(layout, on_wait=lambda: pytest.fail("the lock is still held")):
        pass
