"""`sdpo personalize`: what it prints, and what it refuses before Ray is started."""

import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import ClassVar

import pytest
import typer
from typer.testing import CliRunner

from jobs import personalize
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import Run
from sdpo_ray.errors import DataError
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import train_owners
from sdpo_ray.personal.mlflow_runs import PersonalRuns
from sdpo_ray.personal.owners import Owner
from sdpo_ray.personal.store import Attempt, known_owners
from sdpo_ray.personal.trainer import ProgressCallbacks
from sdpo_ray.records import Snapshot, Verdict
from sdpo_ray.tables.delta_table import Table
from tests.support import builders
from tests.support.personal import add_personal_policy, owner_of, run_with_personal_policies


def typed(layout: Layout, *arguments: str, code: int = 0) -> str:
    app = typer.Typer()
    app.command()(personalize.main)
    done = CliRunner().invoke(app, ["--set", f"root={layout.root}", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return re.sub(r"\s+", " ", done.output)


def test_a_run_without_policies_says_so(layout: Layout):
    assert "no personal policies yet" in typed(layout, "--list")


def test_the_list_shows_served_and_stale_policies_without_user_names(layout: Layout):
    run_with_personal_policies(layout)
    write_json(layout.release_pointer, builders.release(layout.root / "v3", policy_version=3))
    shown = typed(layout, "--list")
    owner = owner_of(layout, "ann").digest
    assert shown.count("fresh") == 3
    assert f"{owner[:12]} personal-{owner[:12]}-v1-on-v3-" in shown
    assert "v1 over v3: PROMOTE 2 interactions" in shown
    assert "mallory" not in shown
    write_json(layout.release_pointer, builders.release(layout.root / "v4", policy_version=4))
    assert typed(layout, "--list").count("stale: the shared policy answers") == 3
    add_personal_policy(layout, owner_of(layout, "bob"), ended=False)
    assert "the shared policy in training" in typed(layout, "--list")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--user", "ann", "--all"),
        ("--user", "ann", "--whole-tenant", "--list"),
        ("--all", "--list"),
        ("--remove",),
        ("--remove", "--all"),
        ("--remove", "--list"),
    ],
)
def test_exactly_one_action_is_accepted(layout: Layout, arguments: tuple[str, ...]):
    assert "give one of --user, --whole-tenant, --all and --list" in typed(layout, *arguments, code=2)


def test_a_user_and_the_whole_tenant_are_refused_together(layout: Layout):
    assert "name an owner" in typed(layout, "--user", "ann", "--whole-tenant", "--set", "serve.adapters=1", code=2)


def test_a_run_that_serves_no_adapters_is_refused_before_anything_starts(layout: Layout):
    for arguments in (("--user", "ann"), ("--all",)):
        assert "serve.adapters of 1 or more" in typed(layout, *arguments, code=2)
    assert "--every-s belongs to --all" in typed(layout, "--user", "ann", "--every-s", "5", code=2)
    assert not layout.root.exists()


class _Trainer:
    """Trains two owners that are due: the first was erased, the second gets a policy."""

    learned: ClassVar[list[str]] = []

    def __init__(self, run: Run, callbacks: ProgressCallbacks) -> None:
        callbacks.on_step("here")
        callbacks.on_progress(1, 2)

    def owners_due(self) -> list[Owner]:
        return [Owner(digest=name * 32, tenant="default", users=(name,)) for name in "ab"]

    def learn(self, owner: Owner) -> Attempt:
        if owner.users == ("a",):
            raise DataError("0 interactions to learn from")
        self.learned.append(owner.digest)
        snapshot = Snapshot(
            snapshot_id="", table_version=0, seed=0, rule="", interaction_ids=(), held_out_ids=(), path="", digest="",
            last_interaction_at_s=0.0,
        )  # fmt: skip
        return Attempt(
            owner=owner.digest, version=2, base_version=7, snapshot=snapshot, verdict=Verdict.PROMOTE,
            reasons=("gain 0.1",), name="personal-b", ended_at_s=0.0,
        )  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Trainer]]:
    """Neither Ray nor a learner."""
    monkeypatch.setattr(train_owners, "PersonalTrainer", _Trainer)
    monkeypatch.setattr(train_owners, "ray_session", lambda run: nullcontext())
    _Trainer.learned.clear()
    before = signal.getsignal(signal.SIGTERM)
    yield _Trainer
    signal.signal(signal.SIGTERM, before)


def test_all_continues_with_the_next_owner_when_one_cannot_be_trained(layout: Layout, fake: type[_Trainer]):
    shown = typed(layout, "--all", "--set", "serve.adapters=1")
    assert "aaaaaaaaaaaa: 0 interactions to learn from" in shown
    assert "bbbbbbbbbbbb v2 over v7: PROMOTE gain 0.1 personal-b answers from now on" in shown
    assert fake.learned == ["b" * 32]


def test_all_repeats_until_sigterm(layout: Layout, fake: type[_Trainer], monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train_owners.time, "sleep", sleep)
    assert "stopped" in typed(layout, "--all", "--every-s", "600", "--set", "serve.adapters=1")
    assert slept == [600.0] * 3
    assert len(fake.learned) == 3


def test_remove_deletes_one_policy_under_every_pseudonym_and_keeps_the_interactions(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
):
    run_with_personal_policies(layout)
    deleted: list[str] = []

    class Runs:
        def erase(self, owners: Iterable[str]) -> int:
            deleted.extend(owners)
            return 0

    monkeypatch.setattr(PersonalRuns, "of", lambda run: Runs())
    ann = owner_of(layout, "ann").digest
    Pseudonyms.load(layout.pseudonym_keys).rotate()
    assert "the shared policy answers from now on" in typed(layout, "--remove", "--user", "ann")
    assert ann not in known_owners(layout)
    assert len(known_owners(layout)) == 2
    assert deleted == [owner_of(layout, "ann").digest, ann]
    assert Table.interactions(layout).num_rows == 6
    assert "nothing to remove" in typed(layout, "--remove", "--user", "ann")
