"""Where the bytes of a table are: a directory, or a prefix in an S3-compatible store.

Delta-rs and pyarrow read the same environment variables: AWS_ENDPOINT_URL, AWS_REGION, the credentials. Delta-rs alone
wants AWS_ALLOW_HTTP=true for an endpoint without TLS.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import fsync_directory

_S3 = "s3://"
LOG = "_delta_log"


class TableLocation:
    """The directory or URI of one Delta table; names of files are relative to it."""

    def __init__(self, uri: str) -> None:
        """Raises ConfigError for a URI of another store."""
        store, path = _store(uri)
        self.uri = uri
        self.directory = None if uri.startswith(_S3) else Path(path)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        self.filesystem = fs.SubTreeFileSystem(path, store)

    def names(self) -> list[str]:
        """Every file at this place, Delta's log included."""
        found = self.filesystem.get_file_info(fs.FileSelector("", recursive=True))
        return [info.path for info in found if info.type == fs.FileType.File]

    def log_names(self) -> list[str]:
        return [name for name in self.names() if name.startswith(LOG)]

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is gone already is none's loss."""
        for name in names:
            try:
                self.filesystem.delete_file(name)
            except FileNotFoundError:
                continue
        self.sync(())

    def sync(self, names: Iterable[str]) -> None:
        """Return once these files, and the directories they are in, are on disk.

        In an object store there is nothing to do: what it acknowledged is durable. A file that is gone was replaced
        by files that were synced before it was removed.
        """
        if self.directory is None:
            return
        for name in names:
            try:
                fd = os.open(self.directory / name, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        for directory in (self.directory / LOG, self.directory, self.directory.parent, self.directory.parent.parent):
            fsync_directory(directory)


def read_files(
    files: Sequence[str], schema: pa.Schema, columns: Sequence[str] | None, where: ds.Expression | None
) -> pa.Table:
    """Rows of data files, paths or URIs of one store, read with one thread. Raises FileNotFoundError."""
    if not files:
        return schema.empty_table().select(list(columns or schema.names))
    store, _ = _store(files[0])
    dataset = ds.dataset([_store_path(file) for file in files], schema=schema, format="parquet", filesystem=store)
    return dataset.to_table(columns=None if columns is None else list(columns), filter=where, use_threads=False)


def _store(uri: str) -> tuple[fs.FileSystem, str]:
    if uri.startswith(_S3):
        return fs.S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL")), _store_path(uri)
    if "://" in uri:
        raise ConfigError(f"tables are kept in a directory or at s3://bucket/prefix, not at {uri}")
    return fs.LocalFileSystem(), uri


def _store_path(uri: str) -> str:
    return uri.removeprefix(_S3)
