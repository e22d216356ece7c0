"""The command line of personal policies: what it shows, and what it refuses before anything is started."""

import re
from pathlib import Path

import pytest
import typer
from test_erase_personal import a_run, learned, owner_of
from typer.testing import CliRunner

from jobs import personalize
from sdpo_ray.storage import Layout, write_json
from tests import builders


def typed(layout: Layout, *arguments: str, code: int = 0) -> str:
    app = typer.Typer()
    app.command()(personalize.main)
    done = CliRunner().invoke(app, ["--set", f"root={layout.root}", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return re.sub(r"\s+", " ", done.output)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "a run")


def test_a_run_without_policies_says_so(layout: Layout):
    assert "no personal policies yet" in typed(layout, "--list")


def test_the_list_says_who_is_served_and_what_is_stale_and_names_nobody(layout: Layout):
    a_run(layout)
    write_json(layout.release_pointer, builders.release(layout.root / "v3", policy_version=3))
    shown = typed(layout, "--list")
    owner = owner_of(layout, "ann").digest
    assert shown.count("fresh") == 3
    assert f"{owner[:12]} personal-{owner[:12]}-v1-on-v3-" in shown
    assert "v1 over v3: PROMOTE 2 interactions" in shown
    assert "mallory" not in shown
    write_json(layout.release_pointer, builders.release(layout.root / "v4", policy_version=4))
    assert typed(layout, "--list").count("stale: the shared policy answers") == 3
    learned(layout, owner_of(layout, "bob"), ended=False)
    assert "the shared policy under way" in typed(layout, "--list")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--user", "ann", "--all"),
        ("--user", "ann", "--whole-tenant", "--list"),
        ("--all", "--list"),
        ("--forget",),
        ("--forget", "--all"),
        ("--forget", "--list"),
    ],
)
def test_one_thing_is_asked_at_a_time(layout: Layout, arguments: tuple[str, ...]):
    assert "give one of --user, --whole-tenant, --all and --list" in typed(layout, *arguments, code=2)


def test_somebody_and_their_whole_tenant_are_two_owners(layout: Layout):
    assert "name somebody" in typed(layout, "--user", "ann", "--whole-tenant", "--set", "serve.adapters=1", code=2)


def test_a_laptop_without_adapters_is_told_what_to_set_before_anything_starts(layout: Layout):
    for asked in (("--user", "ann"), ("--all",)):
        assert "serve.adapters of 1 or more" in typed(layout, *asked, code=2)
    assert "--every-s belongs to --all" in typed(layout, "--user", "ann", "--every-s", "5", code=2)
    assert not layout.root.exists()
