"""An erasure and those who carry users' text from one place to another take turns.

Between the reading of a row and the writing of what came of it an erasure would find the text in neither place. So a
round of curation, and a cycle from its draw to its records, are each one turn, and an erasure waits for its own. The
files are locked with flock(2), which the kernel undoes for whoever dies; a shared root needs a file system that has it.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdpo_ray.io.paths import Layout


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """While it lasts, no other process changes `path`: read it inside, and write it back inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def data_lock(layout: Layout, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the turn for as long as the block runs; `on_wait` is called once where somebody else has it.

    Not to be entered again within itself. Whoever asks first is next: the training loop, which asks again at once, does not
    overtake an erasure that waits.
    """
    layout.root.mkdir(parents=True, exist_ok=True)
    with _locked(layout, "turnstile", on_wait):
        turn = _open(layout, "turn")
        try:
            _lock(turn, on_wait)
        except BaseException:
            os.close(turn)
            raise
    try:
        yield
    finally:
        os.close(turn)


@contextmanager
def _locked(layout: Layout, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    descriptor = _open(layout, name)
    try:
        _lock(descriptor, on_wait)
        yield
    finally:
        os.close(descriptor)


def _open(layout: Layout, name: str) -> int:
    return os.open(layout.root / f".{name}.lock", os.O_CREAT | os.O_RDWR, 0o600)


def _lock(descriptor: int, on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
