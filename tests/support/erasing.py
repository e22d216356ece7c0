"""Erasures in tests: by the library, by the command, and killed half-way."""

import subprocess
import sys

from sdpo_ray.config import parse_run
from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy.data_subject import find_data_subject
from sdpo_ray.privacy.erasure import Erasure
from sdpo_ray.privacy.erasure_report import ErasureReport
from tests.support.paths import REPOSITORY

VICTIM = "mallory@example.org"


def erase(
    layout: Layout, *, user: str | None = VICTIM, turns: tuple[str, ...] = (), dry: bool = False
) -> ErasureReport:
    """Erase a user, or a conversation by its turns; with `dry`, report what would be erased."""
    run = parse_run({"root": str(layout.root), "capture": {"journal": {"segment_s": 0.3}}})
    named = find_data_subject(layout, tenant="default", user=user, turn_ids=turns)
    with Erasure(run, named, lambda step: None) as erasure:
        return erasure.preview() if dry else erasure.execute()


class Killed(BaseException):
    """Stands for kill -9 within one process."""


def erase_job(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `jobs/erase.py` on the run of `layout`."""
    argv = [sys.executable, "jobs/erase.py", "--set", f"root={layout.root}", *arguments]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, stdin=subprocess.DEVNULL)
