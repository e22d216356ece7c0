"""Weights on disk: what is wrong with them is named before anything is loaded."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdpo_ray.errors import DataError
from sdpo_ray.records import FileDigest
from serve.weights import checkpoint_io
from serve.weights.checkpoint_io import TensorSpec

WEIGHTS = {"a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b.weight": torch.ones(4).bfloat16()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(WEIGHTS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def digest(path: Path, name: str = "model.safetensors") -> FileDigest:
    return FileDigest(name=name, sha256=hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest())


def test_headers_tell_shapes_and_precisions_of_all_files(checkpoint: Path):
    save_file({"c.weight": torch.ones(1, 1)}, checkpoint / "more.safetensors")
    assert checkpoint_io.headers(checkpoint) == {
        "a.weight": TensorSpec(dtype="F32", shape=(2, 3)),
        "b.weight": TensorSpec(dtype="BF16", shape=(4,)),
        "c.weight": TensorSpec(dtype="F32", shape=(1, 1)),
    }


def test_what_is_read_is_what_was_saved(checkpoint: Path):
    found = checkpoint_io.read(checkpoint, [digest(checkpoint)])
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], each) for name, each in WEIGHTS.items())


@pytest.mark.parametrize("cut", [0, 4, 30, -1], ids=["empty", "in the length", "in the header", "in the tensors"])
def test_a_torn_file_is_named(checkpoint: Path, cut: int):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    for look in (checkpoint_io.headers, checkpoint_io.read):
        with pytest.raises(DataError, match=r"model\.safetensors"):
            look(checkpoint)


def test_a_file_with_something_behind_its_tensors_is_refused(checkpoint: Path):
    with (checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"model\.safetensors is torn, .*not fully covered"):
        checkpoint_io.headers(checkpoint)


def test_a_header_of_other_things_is_refused(checkpoint: Path):
    for header in (b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32"}}', b"\xff"):
        (checkpoint / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(DataError, match=r"model\.safetensors is torn, .*invalid (JSON|UTF-8) in header"):
            checkpoint_io.headers(checkpoint)
    (checkpoint / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little"))
    with pytest.raises(DataError, match=r"no safetensors file: .*header too large"):
        checkpoint_io.headers(checkpoint)


def test_a_missing_directory_or_file_is_named(checkpoint: Path):
    with pytest.raises(DataError, match="nowhere holds no safetensors file"):
        checkpoint_io.headers(checkpoint / "nowhere")
    with pytest.raises(DataError, match=r"model-2\.safetensors is missing"):
        checkpoint_io.read(checkpoint, [digest(checkpoint), digest(checkpoint, "model-2.safetensors")])


def test_one_bit_is_enough_to_be_another_file(checkpoint: Path):
    expected = [digest(checkpoint)]
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint_io.read(checkpoint).keys() == WEIGHTS.keys()
    with pytest.raises(DataError, match="sha256 differs"):
        checkpoint_io.read(checkpoint, expected)


def test_a_file_without_a_digest_is_refused_where_digests_are_known(checkpoint: Path):
    expected = [digest(checkpoint)]
    save_file({"c.weight": torch.ones(1)}, checkpoint / "more.safetensors")
    with pytest.raises(DataError, match=r"more\.safetensors is not what was exported"):
        checkpoint_io.read(checkpoint, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_is_named(tmp_path: Path, value: float):
    save_file(WEIGHTS | {"b.weight": torch.tensor([1.0, value]).bfloat16()}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"b\.weight holds what is not a number"):
        checkpoint_io.read(tmp_path)


KNOWN = {"a": TensorSpec(dtype="BF16", shape=(2, 3)), "b": TensorSpec(dtype="BF16", shape=(4,))}


def test_weights_may_be_in_the_served_precision_or_in_fp32():
    checkpoint_io.require_same(KNOWN, KNOWN)
    checkpoint_io.require_same(KNOWN | {"a": TensorSpec(dtype="F32", shape=(2, 3))}, KNOWN)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"a": KNOWN["a"]}, "there is no b"),
        (KNOWN | {"c": KNOWN["a"]}, "c is one too many"),
        (KNOWN | {"b": TensorSpec(dtype="BF16", shape=(5,))}, r"b is \(5,\), not \(4,\)"),
        (KNOWN | {"b": TensorSpec(dtype="I8", shape=(4,))}, "b is in I8, not in BF16"),
        (KNOWN | {"b": TensorSpec(dtype="F16", shape=(4,))}, "b is in F16, not in BF16"),
    ],
)
def test_another_architecture_or_precision_is_named(found: dict[str, TensorSpec], why: str):
    with pytest.raises(DataError, match=why):
        checkpoint_io.require_same(found, KNOWN)


def test_digests_are_found_by_the_folder_they_belong_to():
    digests = [FileDigest(name=name, sha256=name) for name in ("model.safetensors", "adapter/a.safetensors")]
    assert checkpoint_io.within(digests) == digests[:1]
    assert checkpoint_io.within(digests, "adapter") == [
        FileDigest(name="a.safetensors", sha256="adapter/a.safetensors")
    ]
