"""Prints how the code is cut at two commits, as the Markdown table of docs/architecture.md: `make tree-table`.

Everything is read from git, so commits before this file existed can be measured, too.
"""

import argparse
import ast
import re
import statistics
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import PurePosixPath

BEFORE = "05aecd0"
PRODUCT = ("sdpo_ray/", "serve/", "jobs/")

USES = re.compile(r"^(?:sdpo_ray|serve)/upstream/(\w+)[./]")
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFigures:
    """How the product's Python modules are cut at one commit. Made by `measure`; read by `table`."""

    lines: list[int] = field(default_factory=list)
    longest: str = ""
    folders: Counter[str] = field(default_factory=Counter)
    """Modules, `__init__.py` not counted, by folder."""
    repeated: list[str] = field(default_factory=list)
    """Names of public classes that are defined more than once."""
    long_functions: int = 0
    job_modules: int = 0
    longest_job: int = 0
    private_uses: Counter[str] = field(default_factory=Counter)
    """Entries of `PRIVATE_USES` by module of an `upstream` package."""
    readme_bytes: int = 0
    readme_lines: int = 0


def measure(commit: str) -> TreeFigures:
    """The figures of one commit."""
    paths = [p for p in git("ls-tree", "-r", "--name-only", commit).split("\n") if p.endswith(".py")]
    sources = {p: git("show", f"{commit}:{p}") for p in paths if p.startswith(PRODUCT)}
    lengths = {path: text.count("\n") for path, text in sources.items()}
    modules = [p for p in sources if not p.endswith("__init__.py")]
    defined: dict[str, set[str]] = defaultdict(set)
    long_functions, private_uses = 0, Counter[str]()
    for path, text in sources.items():
        tree = ast.parse(text)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined[node.name].add(path)
        long_functions += sum(
            (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
        if (match := USES.match(path)) and match[1] != "__init__":
            private_uses[match[1]] += sum(
                len(node.value.elts)
                for node in tree.body
                if isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Tuple)
                and ast.unparse(node.targets[0]) == "PRIVATE_USES"
            )
    readme = git("show", f"{commit}:README.md")
    jobs = [path for path in modules if path.startswith("jobs/")]
    return TreeFigures(
        lines=list(lengths.values()),
        longest=max(lengths, key=lengths.__getitem__),
        folders=Counter(str(PurePosixPath(path).parent) for path in modules),
        repeated=sorted(name for name, places in defined.items() if len(places) > 1),
        long_functions=long_functions,
        job_modules=len(jobs),
        longest_job=max(lengths[path] for path in jobs),
        private_uses=private_uses,
        readme_bytes=len(readme.encode()),
        readme_lines=readme.count("\n"),
    )


def table(before: TreeFigures, after: TreeFigures, names: tuple[str, str]) -> str:
    """Both figures side by side, in Markdown."""
    rows = [("", *(f"{name}" for name in names)), ("---", "---", "---")]
    for label, cell in (
        ("modules / lines", lambda f: f"{len(f.lines)} / {sum(f.lines):,}"),
        ("median / longest file", lambda f: f"{statistics.median(f.lines):.0f} / {max(f.lines)} (`{f.longest}`)"),
        ("functions over 60 lines", lambda f: str(f.long_functions)),
        ("most files in one folder", lambda f: ", ".join(f"{n} in `{p}`" for p, n in f.folders.most_common(3))),
        ("folders of more than 13 files", lambda f: str(sum(n > 13 for n in f.folders.values()))),
        ("modules in `jobs/` / longest", lambda f: f"{f.job_modules} / {f.longest_job}"),
        ("public class names that repeat", lambda f: f"{len(f.repeated)}{listed(f.repeated)}"),
        ("private uses of upstreams", lambda f: uses(f.private_uses)),
        ("README bytes / lines", lambda f: f"{f.readme_bytes:,} / {f.readme_lines}"),
    ):
        rows.append((label, cell(before), cell(after)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def listed(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def uses(counts: Counter[str]) -> str:
    if not counts:
        return "not listed in one place; the review counted 42"
    return f"{sum(counts.values())}: " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commits", nargs="*", default=[BEFORE, "HEAD"], help="two commits")
    before, after = parser.parse_args().commits
    print(
        table(
            measure(before),
            measure(after),
            (f"before ({before})", f"after ({git('rev-parse', '--short', after).strip()})"),
        )
    )


if __name__ == "__main__":
    main()
