"""Files that are whole or absent: written beside their place, flushed, and renamed. Parquet without surprises."""

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_bench.datasets.errors import InputError

UNFINISHED = ".work"  # folder of files being written, git-ignored; a kill can leave only such files behind


@contextmanager
def writing(results_dir: Path) -> Iterator[Path]:
    """A folder for unfinished files on the records' disk; OSError becomes one clear InputError, nothing is left."""
    unfinished = None
    try:
        parent = Path(results_dir) / UNFINISHED
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=parent))
        yield unfinished
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space, then run the same command again" if full else "give --results a writable folder"
        raise InputError(f"Cannot write records in {results_dir}: {error.strerror or error}; {advice}") from None
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a rename must never become durable before the content it names


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders can not be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(unfinished: Path, folder: Path) -> None:
    """Make a complete folder appear under its name in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        os.chmod(unfinished, 0o755)  # mkdtemp keeps others out
        _sync_folder(unfinished)
        os.rename(unfinished, folder)
        _sync_folder(folder.parent)
        return
    # The run id determines the result, so old and new files agree, and replacing them one by one never leaves a moment
    # without a complete record. run.json last: before it a corrupt record stays unreadable.
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "run.json"):
        os.replace(path, folder / path.name)


def read_parquet(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """The whole table; InputError where it is missing, corrupt or has other columns."""
    return read_table(path, columns).to_pandas()


def read_table(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """`read_parquet` as an Arrow table."""
    try:
        # files are small: threads that read and prefetch cost more than they save
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes()), pre_buffer=False).read(use_threads=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from None
    if table.column_names != list(columns):
        raise InputError(f"{path}: columns {', '.join(table.column_names)}, expected {', '.join(columns)}")
    return table


def parquet_bytes(table: pa.Table, delta: tuple[str, ...]) -> bytes:
    """zstd Parquet; ``delta`` columns rise in small steps and shrink to almost nothing as differences."""
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(),
        buffer,
        compression="zstd",
        use_dictionary=[name for name in table.column_names if name not in delta],
        column_encoding=dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
    )
    return buffer.getvalue()
