"""The README and docs/: links, anchors, paths, commands, options, keys, make targets and Python blocks are right."""

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from markdown.extensions.toc import slugify

from sdpo_ray.cli.lazy_group import load
from sdpo_ray.config import keys, parse_run
from sdpo_ray.evaluate.judge import load_judge
from sdpo_ray.evaluate.probe import Probe
from sdpo_ray.evaluate.questions import load_questions
from sdpo_ray.records import ScoreSpec
from tests.support.paths import REPOSITORY

ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
OLD_NAMES = {"docs/renamed.md"}
"""Pages that state names which are gone."""
GONE = {
    *(
        "promote.trial",
        "capture.segment_mib",
        "evaluate.suite",
        "distill.context.empty_system",
        "distill.context.end_token",
    ),
    *("--turns", "--forget"),
}
"""Keys and options that the changelog names because they are gone."""
VERBS = sorted(path.stem for path in (REPOSITORY / "jobs").glob("[a-z]*.py") if path.stem != "sdpo")
OPTIONS_OF_OTHERS = {
    *(
        "--working-dir",
        "--no-wait",
        "--submission-id",
        "--head",
        "--block",
        "--backend-store-uri",
        "--enable-auto-tool-choice",
    ),
    *("--create", "--topic", "--partitions", "--replication-factor", "--config", "--describe"),
    *(
        "--json",
        "--markdown",
        "--figure",
        "--seeds",
        "--rounds",
        "--models",
        "--seconds",
        "--quick",
        "--online",
        "--linear",
    ),
    *("--modes", "--replicas", "--spread", "--strict", "--install-completion", "--version"),
}
"""Options of Ray, MLflow, vLLM, Kafka, mypy, `sdpo` itself and of this project's benchmarks."""
ROOMS = ("sdpo_ray", "serve")


def pages() -> dict[str, str]:
    paths = [REPOSITORY / name for name in ROOT_PAGES] + sorted((REPOSITORY / "docs").rglob("*.md"))
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in paths}


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def spans(text: str) -> list[str]:
    """Inline code of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def commands(text: str) -> list[str]:
    """Lines of a page's code blocks, and its inline code, that call a command of `jobs/`."""
    blocks = re.findall(r"^```.*?^```$|(?:^    .*\n)+", text.replace("\\\n", " "), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [each for each in [*lines, *spans(text)] if re.search(r"\bjobs/\w+\.py\b|\bsdpo [a-z]", each)]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    return {slugify(re.sub(r"[`*]", "", heading), "-") for heading in headings}


command = cache(load)


def options(verb: str) -> set[str]:
    """Options of a command and of its own commands."""
    found = command(f"jobs.{verb}")
    every = [found, *getattr(found, "commands", {}).values()]
    return {"--help"} | {name for each in every for p in each.params for name in (*p.opts, *p.secondary_opts)}


def names_of_keys() -> set[str]:
    """Keys of a run file and the sections that hold them."""
    every = set(keys())
    return every | {name.rsplit(".", n)[0] for name in every for n in range(1, name.count(".") + 1)}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split("\0") if path and (REPOSITORY / path).exists()]


def run_python(code: str, folder: Path) -> str:
    """Standard output of `code`, run in `folder`."""
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page: str):
    text = pages()[page]
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in pages() if page not in OLD_NAMES])
def test_every_path_that_a_page_names_exists(page: str):
    paths = re.compile(rf"(?:{'|'.join(sorted({path.split('/')[0] for path in tracked() if '/' in path}))})/[\w./-]*")
    named = {match[0] for span in spans(pages()[page]) for match in paths.finditer(span) if match.start() == 0}
    templates = {name for name in named if re.search(r"[A-Z]{2,}", name) and not (REPOSITORY / name).exists()}
    assert sorted(name for name in named - templates if not (REPOSITORY / name).exists()) == []


def test_every_renamed_module_is_where_the_table_says():
    rows = re.findall(r"^\|.* `([\w/]+\.py)` \|$", pages()["docs/renamed.md"], flags=re.M)
    assert len(rows) > 100
    assert [path for path in rows if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", [page for page in pages() if page not in OLD_NAMES])
def test_every_command_exists_and_has_the_options_that_a_page_gives_it(page: str):
    wrong = []
    for line in commands(pages()[page]):
        for verb in re.findall(r"\bjobs/(\w+)\.py\b|\bsdpo ([a-z][a-z-]+)", line):
            name = (verb[0] or verb[1]).replace("-", "_")
            if name not in VERBS and name != "NAME":
                wrong.append(f"{line}: no command {name}")
            if name not in VERBS:
                continue
            given = re.findall(r"(?<![\w-])--[a-z][\w-]*", line[line.index(verb[0] or verb[1]) :])
            wrong += [f"{line}: {option}" for option in given if option not in options(name) | GONE]
    assert wrong == []


@pytest.mark.parametrize("page", [page for page in pages() if page not in OLD_NAMES])
def test_every_option_in_inline_code_is_one_of_a_command(page: str):
    known = OPTIONS_OF_OTHERS.union(*map(options, VERBS))
    given = {option for span in spans(pages()[page]) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert sorted(given - known - GONE) == []


@pytest.mark.parametrize("page", [page for page in pages() if page not in OLD_NAMES])
def test_every_key_of_a_run_file_that_a_page_names_exists(page: str):
    known = names_of_keys() | GONE
    sections = sorted({name.split(".")[0] for name in known if "." in name})
    dotted = re.compile(rf"(?:{'|'.join(sections)})(?:\.[a-z_0-9]+)+(?= ?=|$)")
    tenants = re.compile(r"capture\.tenants\.\w+")
    stated = [*spans(pages()[page]), *re.findall(r"--set (\S+?)=", pages()[page])]
    named = {match[0] for each in stated if (match := dotted.match(each.strip("[]"))) and not tenants.match(each)}
    assert sorted(named - known) == []


def test_every_key_that_the_algorithm_page_names_is_one_of_distill():
    known = names_of_keys()
    relative = re.compile(r"(?:context|signal|teacher|drift|lora|workers)\.[a-z_.]+[a-z]")
    named = {
        match[0]
        for span in spans(pages()["docs/algorithm.md"])
        for match in relative.finditer(span)
        if match.start() == 0
    }
    assert len(named) > 10
    assert sorted(name for name in named if f"distill.{name}" not in known) == []


def test_every_run_file_that_a_page_shows_is_valid():
    shown = [block for text in pages().values() for block in fenced(text, "toml")]
    assert len(shown) >= 2
    for block in shown:
        parse_run(tomllib.loads(block))


def test_every_make_target_that_a_page_names_exists_and_each_is_named():
    targets = set(re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    text = "\n".join(text for name, text in pages().items() if name not in OLD_NAMES)
    named = set(re.findall(r"(?:^    |`|&& )make ([a-z][a-z-]*)", text, flags=re.M))
    assert sorted(named - targets) == []
    assert sorted(targets - named - {"help"}) == []


def test_every_command_is_described():
    described = pages()["docs/cli.md"]
    assert [verb for verb in VERBS if f"`sdpo {verb.replace('_', '-')}`" not in described] == []


def test_every_metric_is_in_the_operations_page():
    sources = "".join(path.read_text() for path in (REPOSITORY / "serve" / "gateway").glob("*.py"))
    metrics = set(re.findall(r'"(sdpo_[a-z_]+)"', sources)) - {"sdpo_ray"}
    assert len(metrics) > 10
    assert sorted(name for name in metrics if name not in pages()["docs/operations.md"]) == []


def test_the_readme_is_short_and_has_a_line_for_every_folder_and_room():
    readme = (REPOSITORY / "README.md").read_text()
    assert readme.count("\n") < 200
    assert len(readme.encode()) < 15_000
    files = [path for path in tracked() if not path.startswith(".")]
    folders = {path.split("/")[0] for path in files if "/" in path}
    rooms = {
        "/".join(path.split("/")[:2])
        for path in files
        if path.startswith(tuple(f"{r}/" for r in ROOMS)) and path.count("/") > 1
    }
    assert sorted(name for name in folders | rooms if f"`{name}/`" not in readme) == []


def test_the_architecture_page_has_a_line_for_every_room():
    page = pages()["docs/architecture.md"]
    rooms = {
        "/".join(path.split("/")[:2]) for path in tracked() if path.startswith("sdpo_ray/") and path.count("/") > 1
    }
    assert sorted(room for room in rooms if f"`{room}/`" not in page) == []


def test_the_site_has_every_page():
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    listed = [name.removeprefix("docs/") for name in pages() if name.startswith("docs/")]
    assert [name for name in listed if f": {name}\n" not in navigation] == []


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_readmes_lines_of_the_learner_learn(tmp_path: Path):
    readme = pages()["README.md"]
    (triple,), (code,) = fenced(readme, "json"), fenced(readme, "python")
    (tmp_path / "triples.jsonl").write_text(triple)
    advantages = [float(nats) for nats in re.findall(r"mean \|A\| ([\d.]+) nats", run_python(code, tmp_path))]
    assert len(advantages) == 8
    assert advantages[-1] < advantages[0] / 2, "the policy has come closer to itself under hindsight"


def test_the_training_pages_questions_and_judge_are_those_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = pages()["docs/training.md"]
    (code,), (settings,) = fenced(page, "python"), fenced(page, "toml")
    (tmp_path / "my_evaluation.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = parse_run(tomllib.loads(settings))
    questions, judge = load_questions(run), load_judge(run)
    assert questions.is_right(questions.prompts[0], "It is Paris.")
    assert judge(questions.prompts[0], "Paris.", "It is Paris.") == "A"


def test_the_contributing_pages_probe_is_one():
    (code,) = fenced(pages()["CONTRIBUTING.md"], "python")
    names: dict[str, Any] = {"Probe": Probe, "ScoreSpec": ScoreSpec, "measure": lambda given: ()}
    exec(code, names)
    assert isinstance(names["PROBE"], Probe)
