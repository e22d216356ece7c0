"""Location of a table's files: a directory, or a prefix in an S3-compatible store.

Delta-rs and pyarrow read the same environment variables: AWS_ENDPOINT_URL, AWS_REGION, the credentials. Delta-rs also
needs AWS_ALLOW_HTTP=true for an endpoint without TLS.
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
    """Directory or URI of one Delta table; file names are relative to it."""

    def __init__(self, uri: str) -> None:
        """Create the directory if needed. Raises ConfigError for a URI of another kind of store."""
        store, path = _store(uri)
        self.uri = uri
        self.directory = None if uri.startswith(_S3) else Path(path)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        self.filesystem = fs.SubTreeFileSystem(path, store)

    def names(self) -> list[str]:
        """Names of all files, Delta's log included."""
        found = self.filesystem.get_file_info(fs.FileSelector("", recursive=True))
        return [info.path for info in found if info.type == fs.FileType.File]

    def log_names(self) -> list[str]:
        """Names of the files of Delta's log."""
        return [name for name in self.names() if name.startswith(LOG)]

    def remove(self, names: Iterable[str]) -> None:
        """Delete files durably; missing ones are ignored."""
        for name in names:
            try:
                self.filesystem.delete_file(name)
            except FileNotFoundError:
                continue
        self.sync(())

    def sync(self, names: Iterable[str]) -> None:
        """Return once these files and their directories are on disk.

        No-op in an object store, where acknowledged writes are durable. A missing file is ignored: it was replaced by
        files that were synced before it was deleted.
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
    """Rows of data files, given as paths or URIs of one store (`Table.files`). Reads with one thread.

    `columns` None means all; `where` None means all rows. Raises FileNotFoundError.
    """
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
