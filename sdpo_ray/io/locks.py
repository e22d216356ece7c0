"""Locks between processes, on files (`filelock`, which is flock(2) here: the kernel releases a dead process's locks).

A root that is shared by several machines needs a file system with flock.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout

_POLL_S = 0.02


def lock_file(path: Path) -> FileLock:
    """A lock at `path`, mode 0600, not acquired. Each call makes an independent lock, so threads exclude each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, mode=0o600, poll_interval=_POLL_S, is_singleton=False)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of one file during a read-modify-write: read `path` inside the block and write it there."""
    with lock_file(path.with_name(f".{path.name}.lock")):
        yield


@contextmanager
def data_lock(layout: Layout, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the run's user text in place: an erasure, a round of curation and a cycle up to its decision exclude each other.

    Between reading a row and writing what came of it, an erasure would find the text in neither place. `on_wait` is
    called when another process holds the lock. Not reentrant. Fair: a process that waits holds the `turnstile` lock, so
    one that releases the data lock and asks again at once comes after it.
    """
    with lock_file(layout.root / ".turnstile.lock") as turnstile:
        del turnstile
        turn = lock_file(layout.root / ".turn.lock")
        _acquire(turn, on_wait)
    try:
        yield
    finally:
        turn.release()


@contextmanager
def run_lock(layout: Layout) -> Iterator[None]:
    """Hold the run for one training loop. Raises ConfigError while another process has it."""
    lock = lock_file(layout.root / "continual.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"another continual job is at work on {layout.root}: stop it, or set another root") from None
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, on_wait: Callable[[], None]) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_wait()
        lock.acquire()
