"""Write rows into one file, Parquet or JSON Lines by its name: into a temporary file, then renamed."""

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo_ray.datasets.export_rows import SCHEMAS, ExportKind, json_lines
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import fsync_directory

Write = Callable[[pa.Table], None]


@contextmanager
def open_row_writer(out: Path, what: ExportKind) -> Iterator[Write]:
    """Yield a function that writes rows. `out` appears, complete, when the block ends without an exception.

    Raises ConfigError if `out` exists before or after the block, or if its name has no known ending.
    """
    form = next((end for end in (".parquet", ".jsonl", ".jsonl.gz") if out.name.endswith(end)), None)
    if form is None:
        raise ConfigError(f"{out.name} has no known format: name it .parquet, .jsonl or .jsonl.gz")
    _refuse_to_overwrite(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with ExitStack() as stack:
            file = stack.enter_context(aside.open("wb"))
            yield _parquet(file, what, stack) if form == ".parquet" else _lines(file, form, stack)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        _refuse_to_overwrite(out)
        aside.rename(out)
        fsync_directory(out.parent)
    finally:
        aside.unlink(missing_ok=True)


def _refuse_to_overwrite(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists: name a new file")


def _parquet(file: IO[bytes], what: ExportKind, stack: ExitStack) -> Write:
    writer = stack.enter_context(pq.ParquetWriter(file, SCHEMAS[what], compression="zstd"))
    return writer.write_table  # type: ignore[no-any-return]


def _lines(file: IO[bytes], form: str, stack: ExitStack) -> Write:
    # mtime=0: the same rows give the same file.
    lines = stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb", mtime=0)) if form.endswith(".gz") else file

    def write(rows: pa.Table) -> None:
        lines.writelines(json_lines(rows))

    return write
