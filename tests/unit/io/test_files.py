from dataclasses import dataclass

import pytest

from sdpo_ray.errors import DataError, NotReady
from sdpo_ray.io.files import is_ready, read_json, require_ready, sealed_directory, write_json


@dataclass(frozen=True)
class Thing:
    name: str
    parts: tuple[float, ...]


def test_a_record_reads_back_exactly(tmp_path):
    thing = Thing(name="ü", parts=(0.1, -1e-300, 3.0))
    write_json(tmp_path / "deep" / "thing.json", thing)
    assert read_json(tmp_path / "deep" / "thing.json", Thing) == thing
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["thing.json"]


@pytest.mark.parametrize("content", ["{", '{"name": 1, "parts": []}', '{"name": "x"}'])
def test_a_file_of_another_record_is_refused(tmp_path, content):
    (tmp_path / "thing.json").write_text(content)
    with pytest.raises(DataError, match="is not a Thing"):
        read_json(tmp_path / "thing.json", Thing)


def test_a_directory_exists_only_once_it_is_sealed(tmp_path):
    final = tmp_path / "v0001"
    with sealed_directory(final) as aside:
        (aside / "weights").write_text("w")
        assert not final.exists()
    assert is_ready(final)
    assert (require_ready(final) / "weights").read_text() == "w"


def test_leftovers_of_an_interrupted_attempt_are_neither_ready_nor_kept(tmp_path):
    final = tmp_path / "v0001"
    with pytest.raises(KeyboardInterrupt), sealed_directory(final) as aside:
        (aside / "half").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(NotReady):
        require_ready(final)
    with sealed_directory(final) as aside:
        (aside / "whole").write_text("whole")
    assert sorted(path.name for path in final.iterdir()) == ["READY", "whole"]
