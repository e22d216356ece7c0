"""A small file system that tests can fill and make read-only."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_BLOCK = bytes(64 << 10)


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A tmpfs in a private mount namespace; it ends with the process that holds it."""

    holder: int
    mounted: Path

    @property
    def path(self) -> Path:
        """The path of the disk from outside its namespace."""
        return self.seen(str(self.mounted))

    def seen(self, path: str) -> Path:
        """The path from outside of `path` inside."""
        return Path(f"/proc/{self.holder}/root{path}")

    def inside(self, command: Sequence[str]) -> list[str]:
        """`command`, run inside the namespace."""
        return ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", *command]

    def fill(self, *, leave: int = 0) -> None:
        """Fill the disk up to `leave` bytes."""
        ballast = self.path / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(_BLOCK) == len(_BLOCK):
                    continue
            except OSError:
                pass
            file.truncate(max(0, file.tell() - leave))

    def free(self) -> None:
        (self.path / "ballast").unlink()

    def remount(self, how: str) -> None:
        """Remount as `ro` or `rw`. Waits, since a disk cannot be read-only while a file on it is open for writing."""
        deadline = time.monotonic() + 10
        command = self.inside(["mount", "-o", f"remount,{how}", str(self.mounted)])
        while (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.05)


@contextmanager
def small_disk(mounted: Path, *, mib: int) -> Iterator[SmallDisk]:
    """A disk of `mib` MiB at `mounted`. Skips the test where this machine does not allow mounts."""
    mounted.mkdir()
    script = f"mount -t tmpfs -o size={mib}m tmpfs {mounted} && echo mounted && cat"
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"no disk can be mounted here: {holder.stderr.read().strip()}")
        try:
            yield SmallDisk(holder.pid, mounted)
        finally:
            # The process ends with its input.
            holder.communicate()
