"""The console script `sdpo`: check which packages this process would import, then run the command line.

A wheel installs three top-level packages: `sdpo_ray`, `serve` and `jobs`. The last two are common names, so sdpo-ray
needs an environment of its own. Another package of such a name would be imported instead, in this process or in the
Ray workers, which search the working directory of the driver first. The script refuses to start in both cases.
"""

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from sdpo_ray.cli.run_files import INSTALLED
from sdpo_ray.errors import ConfigError

COMMON_NAMES = ("serve", "jobs")


def main() -> None:
    try:
        require_own_packages(Path.cwd())
    except ConfigError as error:
        sys.exit(f"error: {error}")
    import_module("jobs.sdpo").app()


def require_own_packages(working_directory: Path) -> None:
    """Raise ConfigError if `serve` or `jobs` would be imported from another place than `sdpo_ray`."""
    for name in COMMON_NAMES:
        here, found = PathFinder.find_spec(name, [str(working_directory)]), find_spec(name)
        # A directory without __init__.py has no origin, and an installed package takes precedence over it.
        if here is not None and here.origin is not None and not _is_own(here.origin):
            raise ConfigError(
                f"{here.origin} would hide the package {name!r} of sdpo-ray from Ray's workers, which import from "
                "the working directory first: start the command in another directory"
            )
        if found is None or found.origin is None or not _is_own(found.origin):
            raise ConfigError(
                f"the package {name!r} of sdpo-ray, in {INSTALLED}, is hidden by {found and found.origin}: "
                "install sdpo-ray in an environment of its own, or take the other from PYTHONPATH"
            )


def _is_own(origin: str) -> bool:
    return Path(origin).resolve().is_relative_to(INSTALLED.resolve())
