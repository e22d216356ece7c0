"""The environment's own `vllm` command, which the CPU build answers only with the alias of cluster/vllm_metadata.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import vllm

pytestmark = pytest.mark.integration


def test_vllm_command_answers_with_the_version_that_is_installed():
    command = Path(sys.executable).parent / "vllm"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().partition("+")[0] == vllm.__version__
