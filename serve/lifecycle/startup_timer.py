"""Where the seconds of a replica's start go: one line in its log, which `benchmarks/startup.py` makes a table of."""

import logging
import time

import psutil

logger = logging.getLogger("ray.serve")


class StartupTimer:
    """A stop-watch from the start of this process. Each `passed` is the seconds since the one before."""

    def __init__(self) -> None:
        self.began_at_s = psutil.Process().create_time()
        """When this process was started; seconds since 1970."""
        self._last_s = self.began_at_s
        self.seconds: dict[str, float] = {}
        self.passed("process")

    def passed(self, phase: str) -> None:
        """Note a phase that ends now."""
        now_s = time.time()
        self.seconds[phase] = round(now_s - self._last_s, 3)
        self._last_s = now_s

    def log(self) -> None:
        """The line."""
        logger.info("started", extra={"began_at_s": self.began_at_s, "phases": self.seconds})
