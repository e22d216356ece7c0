"""A group that imports a command's module when the command is called."""

import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sdpo_ray.cli.lazy_group import LazyGroup, Verb


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """Two commands: `one` takes a word, `two` has commands of its own."""
    (tmp_path / "lazy_one.py").write_text('def main(word: str) -> None:\n    """First."""\n    print(word * 2)\n')
    (tmp_path / "lazy_two.py").write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef a() -> None: print('a')\n@app.command()\ndef b() -> None: print('b')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    class Group(LazyGroup):
        verbs = (
            Verb(name="one", module="lazy_one", panel="Words", help="First."),
            Verb(name="two", module="lazy_two", panel="Letters", help="Second."),
        )

    app = typer.Typer(cls=Group)
    app.callback()(lambda: None)
    yield app
    for name in ("lazy_one", "lazy_two"):
        sys.modules.pop(name, None)


def test_help_lists_the_commands_by_panel_and_imports_none(group: typer.Typer):
    shown = CliRunner().invoke(group, ["--help"]).output
    assert shown.index("Words") < shown.index("First.") < shown.index("Letters") < shown.index("Second.")
    assert not {"lazy_one", "lazy_two"} & sys.modules.keys()


def test_a_call_imports_its_own_module_alone(group: typer.Typer):
    done = CliRunner().invoke(group, ["one", "ab"])
    assert (done.exit_code, done.output) == (0, "abab\n")
    assert "lazy_one" in sys.modules
    assert "lazy_two" not in sys.modules


def test_a_module_with_an_app_has_commands_of_its_own(group: typer.Typer):
    assert CliRunner().invoke(group, ["two", "b"]).output == "b\n"


def test_a_misspelt_command_is_answered_with_the_nearest(group: typer.Typer):
    done = CliRunner().invoke(group, ["onee"])
    assert done.exit_code == 2
    assert "Did you mean 'one'?" in done.output
    assert "lazy_one" not in sys.modules
