"""Times the phases of a replica's start: one log line, from which `benchmarks/startup.py` makes a table."""

import logging
import time

import psutil

logger = logging.getLogger("ray.serve")


class StartupTimer:
    """Stop-watch from the start of this process. `seconds` has each phase's duration."""

    def __init__(self) -> None:
        self.began_at_s = psutil.Process().create_time()
        """Start of this process, seconds since 1970."""
        self._last_s = self.began_at_s
        self.seconds: dict[str, float] = {}
        self.mark("process")

    def mark(self, phase: str) -> None:
        """End a phase now; the next one begins."""
        now_s = time.time()
        self.seconds[phase] = round(now_s - self._last_s, 3)
        self._last_s = now_s

    def log(self) -> None:
        """Write the log line."""
        logger.info("started", extra={"began_at_s": self.began_at_s, "phases": self.seconds})
