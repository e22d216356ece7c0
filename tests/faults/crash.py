"""Processes that tests kill at random and restart."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo_ray.config import CurateConfig
from tests.support.paths import REPOSITORY

SEGMENT_BYTES = 64 << 10
MAX_BYTES = 512 << 10
"""Bound of the journal, small enough to be reached."""
CURATE = CurateConfig(
    max_batch_turns=1000,
    max_batch_mib=1,
    # All simulated users send the same texts, without pauses.
    max_per_user_hour=0,
    max_copies=1_000_000,
    snapshot_size=32,
    compact_every=10,
)
START_S = 180.0
"""Longest time that a process may take to start: the machines are shared."""


def ready(root: Path) -> None:
    """Mark this process as started."""
    (root / "ready" / str(os.getpid())).touch()


class Processes:
    """Named processes `python -m MODULE ROOT ...`; it is an error if one ends by itself."""

    def __init__(self, root: Path, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> None:
        self._root = root
        self._commands = commands
        self._environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        (root / "ready").mkdir()

    def start(self, name: str) -> None:
        module, *arguments = self._commands[name]
        with self._output(name).open("ab") as output:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", module, str(self._root), *arguments],
                cwd=REPOSITORY,
                env=self._environment,
                stdout=output,
                stderr=output,
            )

    def require_alive(self) -> None:
        for name, process in self._running.items():
            status = process.poll()
            assert status is None, f"{name} ended with {status}:\n{self._output(name).read_text()[-4000:]}"

    def wait_for(self, name: str) -> None:
        """Wait until the process has called `ready`."""
        at_work = self._root / "ready" / str(self._running[name].pid)
        deadline = time.monotonic() + START_S
        while not at_work.exists():
            self.require_alive()
            assert time.monotonic() < deadline, f"{name} does not come up"
            time.sleep(0.02)

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
        # The pid may be reused.
        (self._root / "ready" / str(process.pid)).unlink(missing_ok=True)

    def kill_all(self) -> None:
        for name in list(self._running):
            self._running[name].kill()
            self._running.pop(name).wait(timeout=30)

    def _output(self, name: str) -> Path:
        return self._root / f"{name}.output"


def fresh_seed() -> int:
    """`SDPO_FAULT_SEED`, or a random seed. It is printed, so that pytest shows it with a failure."""
    seed = int(os.environ.get("SDPO_FAULT_SEED") or random.SystemRandom().randrange(1 << 31))
    print(f"SDPO_FAULT_SEED={seed}")
    return seed
