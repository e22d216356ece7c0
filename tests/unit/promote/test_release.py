import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.errors import ReleaseError, SwapError
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.alias_sync import AliasAction, choose_alias_action, sync_alias
from sdpo_ray.promote.release import confirm, point_at, released_versions, rollback, served_release
from sdpo_ray.records import BASE_VERSION, Candidate, FileDigest, Fingerprint, Release

FINGERPRINT = Fingerprint(token_ids=(1, 2), logprobs=(-0.5,))


def candidate(policy_version: int) -> Candidate:
    return Candidate(
        policy_version=policy_version,
        parent_version=1,
        path=f"/candidates/v{policy_version}",
        snapshot_id="s",
        fingerprint=FINGERPRINT,
    )


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A run that released versions 1, 2 and 3."""
    layout = Layout(tmp_path)
    for version in (1, 2, 3):
        point_at(layout, candidate(version))
    return layout


def served(layout: Layout) -> int:
    return read_json(layout.release_pointer, Release).policy_version


def test_a_release_is_recorded_and_pointed_at(tmp_path: Path):
    layout = Layout(tmp_path)
    assert served_release(layout) is None
    first, second = point_at(layout, candidate(1)), point_at(layout, candidate(4))
    assert (first.previous_version, second.previous_version) == (None, 1)
    assert (second.path, second.fingerprint) == ("/candidates/v4", FINGERPRINT)
    assert served_release(layout) == second == read_json(layout.release(4), Release)
    assert read_json(layout.release(1), Release) == first
    assert released_versions(layout) == {1, 4}


@pytest.mark.parametrize("over_the_base", [True, False])
def test_a_release_names_the_adapter_that_its_candidate_has_over_the_runs_base(tmp_path: Path, over_the_base: bool):
    layout = Layout(tmp_path)
    base = point_at(layout, candidate(BASE_VERSION))
    folder = tmp_path / "v3" / "adapter"
    folder.mkdir(parents=True)
    beneath = base.path if over_the_base else "/candidates/v2"
    (folder / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{beneath}", "r": 8, "lora_alpha": 16}}')
    digests = (FileDigest(name="model.safetensors", sha256="00"),)
    release = point_at(layout, replace(candidate(3), path=str(tmp_path / "v3"), digests=digests))
    assert (release.adapter, release.digests) == (str(folder) if over_the_base else "", digests)
    point_at(layout, candidate(4))
    assert rollback(layout) == release


def test_a_release_file_of_an_earlier_version_is_still_read(layout: Layout):
    old = b'{"policy_version": 1, "path": "p", "previous_version": 0, "fingerprint": {"token_ids": [], "logprobs": []}}'
    layout.release(1).write_bytes(old)
    release = read_json(layout.release(1), Release)
    assert (release.adapter, release.digests) == ("", ())


def test_releasing_what_is_served_changes_nothing(layout: Layout):
    before = served_release(layout)
    assert point_at(layout, candidate(3)) == before == served_release(layout)


def test_rolling_back_goes_to_what_was_served_before_and_on_from_there(layout: Layout):
    assert rollback(layout).policy_version == 2
    assert rollback(layout).policy_version == served(layout) == 1
    with pytest.raises(ReleaseError, match="v1 is the first release; released so far: v1, v2, v3"):
        rollback(layout)
    assert served(layout) == 1


def test_rolling_back_to_a_version_serves_its_own_record(layout: Layout):
    record = read_json(layout.release(1), Release)
    assert rollback(layout, 1) == record == served_release(layout)
    assert released_versions(layout) == {1, 2, 3}
    assert rollback(layout, 3).policy_version == served(layout) == 3


def test_rolling_back_to_what_was_never_released_says_what_was(layout: Layout):
    with pytest.raises(ReleaseError, match="v7 was never released; released so far: v1, v2, v3"):
        rollback(layout, 7)
    assert served(layout) == 3


def test_there_is_nothing_to_roll_back_before_the_first_release(tmp_path: Path):
    with pytest.raises(ReleaseError, match="nothing was released yet"):
        rollback(Layout(tmp_path))


def test_the_next_release_after_a_rollback_remembers_what_it_replaced(layout: Layout):
    rollback(layout, 1)
    assert point_at(layout, candidate(4)).previous_version == 1


class Replicas(ThreadingHTTPServer):
    """Health checks answered by several replicas in turn: (status, headers) each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked = 0
        self.answer(("2", ""))

    def answer(self, *replies: tuple[str, str], status: int = 200) -> None:
        """Each reply: the version served, and the swap error or nothing."""
        self.status = status
        self.replies = cycle(replies)


class Handler(BaseHTTPRequestHandler):
    server: Replicas

    def do_GET(self) -> None:
        self.server.asked += 1
        version, swap_error = next(self.server.replies)
        self.send_response(self.server.status if self.path == "/health" else 404)
        self.send_header("x-sdpo-policy-version", version)
        if swap_error:
            self.send_header("x-sdpo-swap-error", swap_error)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def replicas() -> Iterator[Replicas]:
    with Replicas() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_release_is_confirmed_by_a_replica_that_serves_it(replicas: Replicas):
    assert confirm(replicas.url, 2, timeout_s=5) < 5
    assert replicas.asked == 1


def test_several_replicas_must_confirm_in_a_row(replicas: Replicas):
    replicas.answer(("2", ""), ("2", ""), ("1", ""))
    with pytest.raises(ReleaseError, match=r"v2 was released, but .* serves"):
        confirm(replicas.url, 2, timeout_s=0.5, answers=3)
    assert confirm(replicas.url, 2, timeout_s=5, answers=2) < 5


def test_waiting_for_a_replica_ends_when_it_has_swapped(replicas: Replicas):
    replicas.answer(("1", ""))
    threading.Timer(0.3, replicas.answer, [("2", "")]).start()
    assert 0.2 < confirm(replicas.url, 2, timeout_s=5) < 5


def test_a_replica_that_refused_the_version_is_quoted(replicas: Replicas):
    replicas.answer(("1", "v2: log-probs differ from the fingerprint by 3.1 nats"))
    with pytest.raises(SwapError, match=r"v2: log-probs differ from the fingerprint by 3\.1 nats"):
        confirm(replicas.url, 2, timeout_s=5)


def test_an_older_refusal_does_not_count_against_this_version(replicas: Replicas):
    replicas.answer(("1", "v22: unreadable"))
    assert confirm(replicas.url, 1, timeout_s=5) < 5
    with pytest.raises(ReleaseError, match="serves v1 after"):
        confirm(replicas.url, 2, timeout_s=0.2)


def test_a_silent_or_failing_endpoint_is_named_when_the_time_is_up(replicas: Replicas):
    replicas.answer(("2", ""), status=503)
    with pytest.raises(ReleaseError, match="HTTP Error 503"):
        confirm(replicas.url, 2, timeout_s=0.2)
    with pytest.raises(ReleaseError, match=r"no reply .*run\.root"):
        confirm("http://127.0.0.1:9", 2, timeout_s=0.2)


@pytest.mark.parametrize(
    ("alias", "was_released", "passed_gate"), [*product([None, 1, 2], [False, True], [False, True])]
)
def test_a_moved_alias_is_followed_only_to_what_was_released_or_passed(
    alias: int | None, was_released: bool, passed_gate: bool
):
    move = choose_alias_action(alias=alias, served=2, was_released=was_released, passed_gate=passed_gate)
    if alias == 2:
        assert move is AliasAction.STAY
    elif alias is None or not (was_released or passed_gate):
        assert move is AliasAction.RESTORE
    else:
        assert move is AliasAction.FOLLOW


class Aliases:
    """MLflow's alias `champion`."""

    def __init__(self, version: int | None) -> None:
        self.version = version

    def champion(self) -> int | None:
        return self.version

    def move(self, version: int) -> None:
        self.version = version


def follow(layout: Layout, aliases: Aliases, *passed: int) -> AliasAction:
    followed = sync_alias(
        layout,
        champion=aliases.champion,
        set_champion=aliases.move,
        passed=lambda version: candidate(version) if version in passed else None,
    )
    assert followed.release == served_release(layout)
    assert aliases.version == served(layout)
    return followed.action


def test_an_alias_that_stays_moves_nothing(layout: Layout):
    assert follow(layout, Aliases(3)) is AliasAction.STAY
    assert served(layout) == 3


def test_moving_the_alias_to_an_earlier_release_rolls_back(layout: Layout):
    assert follow(layout, Aliases(1)) is AliasAction.FOLLOW
    assert served_release(layout) == read_json(layout.release(1), Release)


def test_moving_the_alias_to_what_passed_the_gate_releases_it(layout: Layout):
    assert follow(layout, Aliases(5), 5) is AliasAction.FOLLOW
    assert (served(layout), released_versions(layout)) == (5, {1, 2, 3, 5})


@pytest.mark.parametrize("alias", [None, 5])
def test_an_alias_moved_past_the_gate_or_deleted_is_put_back(layout: Layout, alias: int | None):
    assert follow(layout, Aliases(alias), 4, 6) is AliasAction.RESTORE
    assert served(layout) == 3


def test_a_promotion_killed_between_alias_and_pointer_is_finished(layout: Layout):
    aliases = Aliases(3)
    aliases.move(4)
    assert follow(layout, aliases, 4) is AliasAction.FOLLOW
    assert served(layout) == 4


def test_an_alias_before_the_first_release_is_an_error(tmp_path: Path):
    with pytest.raises(ReleaseError, match="start serving first"):
        follow(Layout(tmp_path), Aliases(1))
