"""Where things are at rest, and how they are handed over: write aside, rename, marker last.

`Layout` names every path of one run. Readers of a directory call `require_ready`; a directory without its
READY marker does not exist yet, whatever is in it. Paths are local or on a shared file system.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from sdpo_ray.errors import DataError, NotReady

READY = "READY"
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one run under `root`."""

    root: Path
    tables: str = ""
    """Directory or URI of the tables; empty for `root`/tables."""

    def table(self, name: str) -> str:
        """Directory or URI of one Delta table."""
        return f"{self.tables.rstrip('/') or self.root / 'tables'}/{name}"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def release_pointer(self) -> Path:
        """The `Release` that users are served."""
        return self.root / "release.json"

    @property
    def exam_pointer(self) -> Path:
        """The `Release` that the examination engine loads; users never meet it."""
        return self.root / "exam.json"

    @property
    def exam_key(self) -> Path:
        """Bearer key of the examination endpoint, mode 0600."""
        return self.root / "exam.key"

    @property
    def trial_pointer(self) -> Path:
        """The `Trial` of a candidate among users; there is no such file while there is none."""
        return self.root / "trial.json"

    @property
    def trial_key(self) -> Path:
        """Bearer key between the users' replicas and the canary's, mode 0600."""
        return self.root / "trial.key"

    def trial_answers(self, policy_version: int) -> Path:
        """Directory of what copies of chats showed of a candidate in shadow: numbers, a file a replica."""
        return self.root / "trials" / f"v{policy_version:04d}"

    @property
    def personal(self) -> Path:
        """Pointers of personal policies, and the directories of their adapters."""
        return self.root / "personal"

    def personal_pointer(self, owner: str) -> Path:
        """The `PersonalPolicy` of one owner."""
        return self.personal / f"{owner}.json"

    def personal_version(self, owner: str, version: int) -> Path:
        """One attempt at a personal policy: what it learned from, what became of it, and its adapter."""
        return self.personal / owner / f"v{version:04d}"

    @property
    def pseudonym_keys(self) -> Path:
        """Keys of the users' pseudonyms and of pairing, mode 0600."""
        return self.root / "pseudonyms.json"

    @property
    def api_keys(self) -> Path:
        """Digests of the API's keys with their tenants, mode 0600; a run without this file asks for none."""
        return self.root / "api_keys.json"

    @property
    def erasures(self) -> Path:
        """Who was erased, by digest; read whenever the event log is."""
        return self.root / "erasures.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    def snapshot(self, cycle: int) -> Path:
        return self.root / "snapshots" / f"c{cycle:04d}"

    def candidate(self, policy_version: int) -> Path:
        return self.root / "candidates" / f"v{policy_version:04d}"

    def evaluation(self, policy_version: int) -> Path:
        return self.root / "evaluations" / f"v{policy_version:04d}"

    def release(self, policy_version: int) -> Path:
        """Every release that was ever served keeps its record, so that a rollback needs nothing else."""
        return self.root / "releases" / f"v{policy_version:04d}.json"

    def cycle(self, cycle: int) -> Path:
        return self.root / "cycles" / f"{cycle:04d}"


def fsync_directory(path: Path) -> None:
    """Make renames and creations in `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """While it lasts, no other process changes `path`: read it inside, and write it back inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_json(path: Path, record: object) -> None:
    """Replace `path` by the JSON of `record`, atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    fsync_directory(path.parent)


def read_json(path: Path, kind: type[_Record]) -> _Record:
    """Read a record back. Raises FileNotFoundError, or DataError when the file is not a `kind`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not a {kind.__name__}: {error}") from error


@contextmanager
def sealed_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory beside `final`; on success move it there, READY written last.

    What an earlier, killed attempt left behind is removed.
    """
    aside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    for file in aside.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    shutil.rmtree(final, ignore_errors=True)
    aside.replace(final)
    (final / READY).touch()
    fsync_directory(final)
    fsync_directory(final.parent)


def is_ready(path: Path) -> bool:
    return (path / READY).exists()


def require_ready(path: Path) -> Path:
    """Return `path` when it was handed over whole. Raises NotReady."""
    if not is_ready(path):
        raise NotReady(f"{path} has no {READY} marker: it was never finished")
    return path
