"""Create `.venv` from a lock file. Needs only Python and pip; `make setup` runs it.

The command is idempotent: an environment made from the same lock and project file stays as it is.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
UV = "uv==0.13.8"
MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 8 << 30
SOURCE_BUILDS = ("deepspeed",)
"""Distributions without a wheel: built last, against the torch that is installed by then."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="which lock file to install")
    device = parser.parse_args().device
    if sys.version_info < MIN_PYTHON:
        sys.exit(
            f"Python {'.'.join(map(str, MIN_PYTHON))} or newer is needed, this is {sys.version.split()[0]}: "
            "run `make PYTHON=/path/to/python3.11 ...`"
        )
    lock = REPOSITORY / "requirements" / f"{device}.lock"
    venv = REPOSITORY / ".venv"
    stamp = venv / "made-from"
    digest = hashlib.sha256(lock.read_bytes() + (REPOSITORY / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    if (free := shutil.disk_usage(REPOSITORY).free) < MIN_FREE_BYTES:
        sys.exit(f"{free >> 30} GiB are free here; the environment needs {MIN_FREE_BYTES >> 30} GiB")
    install(lock, venv)
    stamp.write_text(digest)


def install(lock: Path, venv: Path) -> None:
    """Create the environment with compiled bytecode: without it every start takes minutes instead of seconds."""
    print(f"making {venv.name} from {lock.name}: a minute or two", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"} if lock.stem == "cpu" else {}
    run([sys.executable, "-m", "venv", "--clear", str(venv)], environment)
    python = str(venv / "bin" / "python")
    run([python, "-m", "pip", "install", "--quiet", UV], environment)
    backend = []
    if lock.stem == "cpu":
        if wheels := pip_find_links(python):
            environment["UV_FIND_LINKS"] = wheels
        else:
            backend = ["--torch-backend", "cpu"]
    pins = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    late = [pin for pin in pins if pin.split("==")[0] in SOURCE_BUILDS]
    first = venv / "first.lock"
    first.write_text("\n".join(pin for pin in pins if pin not in late))
    uv = [str(venv / "bin" / "uv"), "pip", "install", "--quiet", "--python", python, "--no-deps", "--compile-bytecode"]
    run([*uv, *backend, "-r", str(first)], environment)
    run([*uv, "--no-build-isolation", *late], environment)
    run([*uv, "--no-build-isolation", "-e", str(REPOSITORY)], environment)
    run([python, str(Path(__file__).with_name("vllm_metadata.py"))], environment)


def pip_find_links(python: str) -> str:
    """pip's configured `find-links` in the form of `UV_FIND_LINKS`; empty if none. uv reads no pip configuration."""
    argv = [python, "-m", "pip", "config", "get", "global.find-links"]
    return ",".join(subprocess.run(argv, capture_output=True, text=True).stdout.split())


def run(argv: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(argv, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(argv[:6])} ... failed: is the package registry reachable?")


if __name__ == "__main__":
    main()
