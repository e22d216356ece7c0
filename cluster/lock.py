"""Write the lock files from pyproject.toml: versions only, no addresses. `make lock` runs it."""

import subprocess
import sys
from pathlib import Path

from setup import REPOSITORY, pip_find_links

EXTRAS = {"cpu": ("cpu", "dev"), "gpu": ("gpu", "dev")}
HEADER = "# Made by `make lock` from pyproject.toml. Versions only: each machine configures its own package index.\n"


def main() -> None:
    uv = str(Path(sys.executable).parent / "uv")
    wheels = pip_find_links(sys.executable)
    for device, extras in EXTRAS.items():
        lock = REPOSITORY / "requirements" / f"{device}.lock"
        # The index's torch and a local CPU wheel are both 2.13.0; pip's order prefers the local wheel.
        cpu = ["--find-links", wheels] if wheels else ["--torch-backend", "cpu"]
        where = cpu if device == "cpu" else []
        command = [uv, "pip", "compile", "--quiet", "pyproject.toml", "--python-version", "3.11", "--no-header"]
        command += ["--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
        command += ["--override", "requirements/overrides.txt", *where]
        command += [part for extra in extras for part in ("--extra", extra)]
        resolved = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if resolved.returncode:
            sys.exit(f"{lock.name}: {resolved.stderr}")
        lock.write_text(HEADER + resolved.stdout)
        print(f"{lock.name}: {resolved.stdout.count('==')} distributions")


if __name__ == "__main__":
    main()
