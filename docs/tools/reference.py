"""MkDocs hook: generates the reference pages from docstrings, `--help` texts and the run file's schema.

`mkdocs.yml` names this file under `hooks`. The pages exist in the site only; nothing is written into the repository.
"""

import ast
import importlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from sdpo_ray.config import Run

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("sdpo_ray",)
COPIED = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository's root, by their names in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of `docs/`."""
    pages = {
        "reference/commands.md": commands_page(),
        "reference/run-file.md": run_file_page(),
        **python_pages(),
        **{page: _from_docs((REPOSITORY / name).read_text()) for name, page in COPIED.items()},
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links from `docs/` to the repository's root lead to the copies of its pages."""
    return re.sub(
        r"\]\(\.\./(CONTRIBUTING|CHANGELOG|README)\.md", lambda link: f"]({COPIED[f'{link[1]}.md']}", markdown
    )


def commands_page() -> str:
    """One section a command: its help text and a table of its options."""
    lines = ["# Commands", "", "Each command also takes `--help`.", ""]
    paths = (path for path in (REPOSITORY / "jobs").glob("[a-z]*.py") if path.stem != "sdpo")
    for path in sorted(paths):
        module = importlib.import_module(f"jobs.{path.stem}")
        verb = path.stem.replace("_", "-")
        lines += _command(f"sdpo {verb}", verb, _click_command(module))
    return "\n".join(lines)


def run_file_page() -> str:
    """One table a section of the run file: key, default, meaning."""
    docs = griffe.load("sdpo_ray.config", search_paths=[str(REPOSITORY)])
    lines = [
        "# The run file",
        "",
        "One TOML file describes a run. An unknown key is refused with the nearest valid name.",
        "",
    ]
    for prefix, section in _sections(Run, ""):
        documented = docs[section.__module__.removeprefix("sdpo_ray.config.")][section.__name__]
        title = f"`[{prefix.rstrip('.')}]`" if prefix else "Top level"
        summary = documented.docstring.value if documented.docstring else ""
        lines += [f"## {title}", "", summary, "", "| key | default | meaning |", "|---|---|---|"]
        for name, field in section.model_fields.items():
            if not _is_section(field.annotation):
                text = documented.members[name].docstring
                default = _cell(json.dumps(field.get_default(call_default_factory=True), default=str))
                lines.append(f"| `{prefix}{name}` | `{default}` | {_cell(text.value) if text else ''} |")
        lines.append("")
    return "\n".join(lines)


def python_pages() -> dict[str, str]:
    """One page a package of the library, with the docstrings of its modules."""
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")):
        dotted = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        package = dotted if path.stem == "__init__" else dotted.rpartition(".")[0]
        modules[package].append(dotted)
    pages = {f"reference/python/{package}.md": _package(package, names) for package, names in modules.items()}
    index = ["# Python", "", "| package | what is in it |", "|---|---|"]
    index += [f"| [{package}]({package}.md) | {_first_line(package)} |" for package in modules]
    return pages | {"reference/python/index.md": "\n".join(index)}


def _first_line(package: str) -> str:
    file = REPOSITORY / package.replace(".", "/") / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text())) if file.exists() else None
    return _cell((text or "").partition("\n")[0])


def _package(package: str, modules: list[str]) -> str:
    lines = [f"# {package}", ""]
    for name in modules:
        lines += [
            f"::: {name}",
            "    options:",
            "      heading_level: 2",
            f"      members: {'true' if name != package else 'false'}",
            "",
        ]
    return "\n".join(lines)


def _sections(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield prefix, section
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from _sections(field.annotation, f"{prefix}{name}.")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _click_command(module: Any) -> click.Command:
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command()(module.main)
    return typer.main.get_command(app)


def _command(typed: str, name: str, command: click.Command, level: int = 2) -> Iterator[str]:
    yield from ("#" * level + f" {name}", "", "```shell", typed, "```", "", (command.help or "").strip(), "")
    if isinstance(command, click.Group):
        for verb in command.commands:
            yield from _command(f"{typed} {verb}", f"{name} {verb}", command.commands[verb], level + 1)
        return
    yield from ("| option | default | meaning |", "|---|---|---|")
    for each in command.params:
        if isinstance(each, click.Option) and "--help" not in each.opts:
            shown = ", ".join(f"`{flag}`" for flag in (*each.opts, *each.secondary_opts))
            default = each.default if isinstance(each.default, str | int | float | Path) else ""
            yield f"| {shown} | {_cell(_relative(str(default)))} | {_cell(each.help or '')} |"
        elif isinstance(each, click.Argument):
            yield f"| `{each.human_readable_name}` | | {_cell(getattr(each, 'help', None) or '')} |"
    yield ""


def _relative(text: str) -> str:
    return text.replace(f"{REPOSITORY}/", "")


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def _from_docs(text: str) -> str:
    """A page of the repository's root, with links as they are in the site."""
    text = text.replace("](docs/", "](")
    for name, page in COPIED.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text
