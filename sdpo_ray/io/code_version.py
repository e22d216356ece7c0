"""The commit of the running code, recorded with every MLflow run."""

import os
import subprocess
from pathlib import Path

_INSTALLED = Path(__file__).parents[2]


def code_commit() -> str:
    """Git commit of this code, or `SDPO_COMMIT` for a job that runs in a copy of the tree; empty for a wheel.

    A wheel may be installed inside a repository of the user, whose commit says nothing about this code.
    """
    if stated := os.environ.get("SDPO_COMMIT"):
        return stated
    git = ["git", "-C", str(_INSTALLED), "rev-parse"]
    prefix = subprocess.run([*git, "--show-prefix"], capture_output=True, text=True, check=False)
    if prefix.returncode or prefix.stdout.strip():
        return ""
    return subprocess.run([*git, "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
