"""Which code runs: the commit that every MLflow run names."""

import os
import subprocess
from pathlib import Path


def code_commit() -> str:
    """Git commit of this code: `SDPO_COMMIT` where a job runs in a copy of the tree, else what git says."""
    if stated := os.environ.get("SDPO_COMMIT"):
        return stated
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()
