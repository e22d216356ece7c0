"""Run files on the command line: where the recipes are installed, how a path is found, and what the shell completes."""

from pathlib import Path

from sdpo_ray.config import keys

INSTALLED = Path(__file__).parents[2]
"""Directory of the packages `sdpo_ray`, `serve` and `jobs`: a checkout, or the site-packages of a wheel."""
LAPTOP = INSTALLED / "jobs" / "recipes" / "laptop.toml"


def locate_run_file(path: Path) -> Path:
    """`path`, or the file of that name beside the installed packages if there is none here.

    `jobs/recipes/laptop.toml` thus names the recipe from any directory; `policy.base` follows the same rule.
    """
    installed = INSTALLED / path
    return installed if not path.exists() and installed.exists() else path


def complete_run_file(incomplete: str) -> list[str]:
    """TOML files that begin with `incomplete`, here and among the recipes; without any, the shell completes paths."""
    here = (
        [str(path) for path in Path().glob(f"{incomplete}*") if path.suffix == ".toml"] if _relative(incomplete) else []
    )
    recipes = (str(path.relative_to(INSTALLED)) for path in LAPTOP.parent.glob("*.toml"))
    return sorted({*here, *(recipe for recipe in recipes if recipe.startswith(incomplete))})


def complete_override(incomplete: str) -> list[str]:
    """Keys of a run file that begin with `incomplete`, each with its `=`."""
    return sorted(f"{key}=" for key in keys() if key.startswith(incomplete))


def _relative(incomplete: str) -> bool:
    """Whether `Path.glob` takes `incomplete` as the beginning of a pattern."""
    return not incomplete.startswith(("/", "~", "."))
