"""Locks between processes, on files: `filelock`, which uses flock(2), so the kernel releases locks of dead processes.

A root that several machines share needs a file system with flock.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout

_POLL_S = 0.02


def lock_file(path: Path) -> FileLock:
    """A lock at `path`, mode 0600, not acquired. Each call returns another lock, so threads exclude each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, mode=0o600, poll_interval=_POLL_S, is_singleton=False)


def try_acquire(lock: FileLock) -> bool:
    """Acquire `lock` if no other process or thread holds it; whether it is held now."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of one file during a read-modify-write: read `path` inside the block and write it there."""
    with lock_file(path.with_name(f".{path.name}.lock")):
        yield


@contextmanager
def data_lock(layout: Layout, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Exclude erasures, rounds of curation and cycles (up to their decision) from each other.

    Without it, an erasure that runs while another process has read a row and not yet written its result would find the
    text in neither place. `on_wait` is called when another process holds the lock. Not reentrant. Fair: a waiting
    process holds the `turnstile` lock, so a process that releases the data lock and acquires it again at once comes
    after the waiting one.
    """
    with lock_file(layout.root / ".turnstile.lock"):
        lock = lock_file(layout.root / ".turn.lock")
        if not try_acquire(lock):
            on_wait()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def run_lock(layout: Layout) -> Iterator[None]:
    """Reserve the run for one training loop. Raises ConfigError while another process holds the lock."""
    lock = lock_file(layout.root / "continual.lock")
    if not try_acquire(lock):
        raise ConfigError(f"another continual job is at work on {layout.root}: stop it, or set another root")
    try:
        yield
    finally:
        lock.release()
