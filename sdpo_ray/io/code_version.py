"""The commit of the running code, recorded with every MLflow run."""

import os
import subprocess
from pathlib import Path


def code_commit() -> str:
    """Git commit of this code: the environment's `SDPO_COMMIT`, set where the code is a copy, else of the git checkout.

    Empty outside a git checkout.
    """
    if stated := os.environ.get("SDPO_COMMIT"):
        return stated
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return head.stdout.strip()
