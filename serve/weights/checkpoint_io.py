"""Weights on disk, read once and checked before a model is touched.

Every refusal names the file or the tensor: missing, torn, other bytes than were exported, another architecture, another
precision, not a number. The bytes that are hashed are the bytes that are loaded: nothing is read twice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sdpo_ray.errors import DataError
from sdpo_ray.records import FileDigest


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Type and shape of one tensor. Made by `headers`; read by `require_same` and `serve.lora.validation`."""

    dtype: str
    """As safetensors names it: F32, BF16, ..."""
    shape: tuple[int, ...]


def headers(path: Path) -> dict[str, TensorSpec]:
    """Return the tensors of the safetensors files right in `path`, by name, from their headers alone.

    Raises DataError for files that are missing, or shorter or longer than their header says.
    """
    found: dict[str, TensorSpec] = {}
    for file in _files(path):
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    tensor = opened.get_slice(name)
                    found[name] = TensorSpec(dtype=tensor.get_dtype(), shape=tuple(tensor.get_shape()))
        except SafetensorError as error:
            raise DataError(f"{file.name} is torn, or no safetensors file: {error}") from error
    return found


def read(path: Path, digests: Sequence[FileDigest] = ()) -> dict[str, Any]:
    """Return all tensors of the safetensors files right in `path`, in memory, by name.

    Raises DataError naming what is missing, torn, not as `digests` say, or not a number.
    """
    import torch
    from safetensors.torch import load

    expected = {each.name: each.sha256 for each in digests}
    if lost := sorted(expected.keys() - {file.name for file in _files(path)}):
        raise DataError(f"{lost[0]} is missing")
    tensors: dict[str, Any] = {}
    for file in _files(path):
        content = file.read_bytes()
        if expected and hashlib.sha256(content).hexdigest() != expected.get(file.name):
            raise DataError(f"{file.name} is not what was exported: its sha256 differs")
        try:
            tensors |= load(content)
        except SafetensorError as error:
            raise DataError(f"{file.name} is torn, or no safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{name} holds what is not a number")
    return tensors


def within(digests: Sequence[FileDigest], folder: str = "") -> list[FileDigest]:
    """Return the digests of files right in `folder` of a candidate, named as there; "" is the candidate itself."""
    found = []
    for each in digests:
        parent, _, name = each.name.rpartition("/")
        if parent == folder:
            found.append(FileDigest(name=name, sha256=each.sha256))
    return found


def require_same(found: Mapping[str, TensorSpec], known: Mapping[str, TensorSpec]) -> None:
    """Raise DataError unless `found` is the architecture of `known`, in its precision or in fp32."""
    for name in sorted(found.keys() | known.keys()):
        if name not in found:
            raise DataError(f"not the served architecture: there is no {name}")
        if name not in known:
            raise DataError(f"not the served architecture: {name} is one too many")
        if found[name].shape != known[name].shape:
            raise DataError(f"not the served architecture: {name} is {found[name].shape}, not {known[name].shape}")
        if found[name].dtype not in (known[name].dtype, "F32"):
            raise DataError(f"{name} is in {found[name].dtype}, not in {known[name].dtype}")


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise DataError(f"{path} holds no safetensors file")
    return files
