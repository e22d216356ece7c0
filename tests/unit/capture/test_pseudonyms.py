"""Pseudonyms of users, and their keys."""

import hashlib
import hmac
import json
import multiprocessing
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.errors import DataError
from sdpo_ray.io.watched_file import WatchedFile
from tests.support.paths import REPOSITORY


def test_a_pseudonym_is_an_hmac_of_the_user_under_the_newest_key(tmp_path: Path) -> None:
    path = tmp_path / "run" / "pseudonyms.json"
    pseudonyms = Pseudonyms.load(path)
    (key,) = json.loads(path.read_text())["keys"]
    digest = hmac.new(bytes.fromhex(key["key"]), b"alice@example.org", hashlib.sha256).hexdigest()[:32]
    assert pseudonyms.of("alice@example.org") == f"{key['key_id']}.{digest}"
    assert pseudonyms.of("") == ""
    assert pseudonyms.all_of("") == ()
    assert pseudonyms.of("bob") != pseudonyms.of("alice@example.org")
    assert key["key"] not in repr(pseudonyms)


def test_the_file_of_keys_is_private_and_loading_it_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pseudonyms.json"
    first = Pseudonyms.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Pseudonyms.load(path)
    assert (again.of("alice"), again.pairing_key) == (first.of("alice"), first.pairing_key)
    assert len(first.pairing_key) == 32
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith("aside")] == []


def test_a_rotation_changes_all_pseudonyms_and_keeps_the_pairing_key_and_old_pseudonyms(tmp_path: Path) -> None:
    path = tmp_path / "pseudonyms.json"
    first = Pseudonyms.load(path)
    second = first.rotate()
    # Rotated from a stale copy: a key that another process added meanwhile is kept.
    third = first.rotate()
    assert third.all_of("alice") == (third.of("alice"), second.of("alice"), first.of("alice"))
    assert len(set(third.all_of("alice"))) == 3
    assert third.pairing_key == first.pairing_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _load(path: Path) -> str:
    return Pseudonyms.load(path).of("alice")


def test_processes_that_make_the_keys_at_once_end_up_with_the_same_ones(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}" / "pseudonyms.json" for index in range(20)]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        for path in paths:
            assert len(set(pool.map(_load, [path] * 8, chunksize=1))) == 1


def test_a_malformed_file_is_an_error_and_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "pseudonyms.json"
    path.write_text('{"keys": 7}')
    with pytest.raises(DataError, match=r"pseudonyms\.json"):
        Pseudonyms.load(path)
    assert path.read_text() == '{"keys": 7}'


def test_a_running_replica_follows_a_rotation_and_survives_a_broken_or_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "pseudonyms.json"
    followed = WatchedFile(path, Pseudonyms.load)
    old = followed.now().of("alice")
    new = Pseudonyms.load(path).rotate().of("alice")
    assert followed.now().of("alice") == new != old
    content = path.read_text()
    path.write_text("nonsense")
    assert followed.now().of("alice") == new
    path.unlink()
    assert followed.now().of("alice") == new
    assert not path.exists()
    path.write_text(content)
    assert followed.now().of("alice") == new


def test_the_command_rotates(tmp_path: Path) -> None:
    path = tmp_path / "pseudonyms.json"
    old = Pseudonyms.load(path).of("alice")
    command = [sys.executable, "jobs/keys.py", "rotate", "--set", f"root={tmp_path}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    now = Pseudonyms.load(path)
    assert now.all_of("alice")[1:] == (old,)
    assert done.stdout == f"pseudonyms are made with key {now.key_ids[0]} now, the newest of 2\n"
