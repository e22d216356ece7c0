"""The tree in the README is the tree in git."""

import re
import subprocess
from pathlib import PurePosixPath

from tests.support.paths import REPOSITORY

# Packages whose every file has a line of its own; any other directory may be one line.
SPELLED_OUT = ("sdpo_ray", "serve", "jobs", "cluster", "benchmarks")


def readme_paths() -> list[str]:
    """Paths of the README's tree; directories end in a slash."""
    readme = (REPOSITORY / "README.md").read_text()
    (block,) = re.findall(r"## The tree\n.*?```text\n(.*?)```", readme, flags=re.S)
    paths: list[str] = []
    parents: list[str] = []
    for line in block.splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        paths.append("".join(parents[: depth + 1]))
    return paths


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split("\0") if path]


def test_every_line_of_the_tree_exists_in_git():
    files = tracked()
    missing = [path for path in readme_paths() if not any(f == path or f.startswith(path) for f in files)]
    assert missing == []


def test_every_file_of_the_packages_has_a_line_of_its_own_or_of_its_directory():
    listed = set(readme_paths())
    with_children = {f"{PurePosixPath(path.rstrip('/')).parent}/" for path in listed} | {"./"}
    leaves = {path for path in listed if path.endswith("/") and path not in with_children}
    spelled = [path for path in tracked() if path.split("/")[0] in SPELLED_OUT and not path.endswith("__init__.py")]
    unlisted = [p for p in spelled if p not in listed and not any(p.startswith(leaf) for leaf in leaves)]
    assert unlisted == []


def test_every_file_at_the_root_is_in_the_tree_or_hidden():
    listed = set(readme_paths())
    files = [path for path in tracked() if "/" not in path and not path.startswith(".")]
    assert [path for path in files if path not in listed] == []
