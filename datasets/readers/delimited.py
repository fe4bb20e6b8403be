"""Delimited text as string columns, fast through pyarrow; only a faulty file is read again, to name its line."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.readers.files import opened

_LARGEST = 2.0**53  # whole numbers are exact in float64 up to here


def read_delimited(
    path: Path,
    delimiter: str = "\t",
    *,
    quoted: bool = False,
    names: Sequence[str] | None = None,
    encoding: str = "utf-8",
) -> pa.Table:
    """All columns as strings; ``names`` for a file without a header line.

    Raises InputError for an empty, binary or cut file and for a line with the wrong number of fields.
    """
    header = list(names) if names else _header(path, delimiter, quoted, encoding)
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(
                column_names=header, skip_rows=0 if names else 1, encoding=encoding, block_size=1 << 22
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
        )
    except (pa.ArrowInvalid, OSError) as error:
        _name_the_fault(path, delimiter, quoted, encoding, len(header))
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not table.num_rows:
        raise InputError(f"{path} has a header but no rows" if not names else f"{path} has no rows")
    return table


def column(table: pa.Table, name: str, path: Path, role: str) -> pa.ChunkedArray:
    """A column that must be there."""
    if name not in table.column_names:
        raise InputError(f"{path}: no column '{name}' for the {role}. Columns: {', '.join(table.column_names)}")
    return table[name]


def ids(table: pa.Table, name: str, path: Path, role: str, *, header: bool = True) -> pa.ChunkedArray:
    """A column of ids: there, and nowhere empty."""
    values = column(table, name, path, role)
    if not pa.types.is_string(values.type):
        raise InputError(f"{path}: column '{name}' holds {values.type}; {role} ids must be text or whole numbers")
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), True)
    if pc.any(empty).as_py():
        raise InputError(f"{path}:{line_of(path, _first(empty), header=header)}: empty {role} id in column '{name}'")
    return values


def check_unique(values: pa.ChunkedArray, path: Path) -> None:
    """InputError with the line of the first item id that stands in a table of items a second time."""
    twice = values.to_pandas().duplicated().to_numpy()
    if twice.any():
        row = int(twice.argmax())
        raise InputError(f"{path}:{line_of(path, row)}: item id '{values[row].as_py()}' stands twice in the item table")


def numbers(table: pa.Table, name: str, path: Path, role: str, *, header: bool = True) -> np.ndarray:
    """A column of finite numbers, float64; InputError names the first line that holds none."""
    values = column(table, name, path, role)
    if pa.types.is_timestamp(values.type):
        values = pc.divide(pc.cast(pc.cast(values, pa.timestamp("us"), safe=False), pa.int64()), pa.scalar(1e6))
    try:
        found = pc.cast(values, pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        found = np.array([_float_or_nan(value) for value in values.to_pylist()])
    bad = ~(np.abs(found) <= _LARGEST)
    if bad.any():
        row = int(bad.argmax())
        where, value = line_of(path, row, header=header), values[row].as_py()
        raise InputError(f"{path}:{where}: {role} '{value}' in column '{name}' is not a number below 2^53")
    return found


def line_of(path: Path, row: int, *, header: bool = True) -> int:
    """The line number of data row ``row`` (from 0); blank lines count as lines but not as rows."""
    if path.name.removesuffix(".gz").endswith(".parquet"):
        return row + 1
    with opened(path) as stream:
        filled = (line_number for line_number, line in enumerate(stream, start=1) if line.strip())
        return next(itertools.islice(filled, row + header, None), row + 1)


def _first(mask: pa.ChunkedArray) -> int:
    return int(mask.to_numpy().argmax())


def _float_or_nan(value: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _rows(path: Path, delimiter: str, quoted: bool, encoding: str) -> Iterator[tuple[int, list[str]]]:
    with opened(path, encoding) as stream:
        if quoted:
            parsed = csv.reader(stream, delimiter=delimiter)
            try:
                yield from ((parsed.line_num, row) for row in parsed if row)
            except csv.Error as error:
                raise InputError(f"{path}:{parsed.line_num}: not {delimiter!r}-delimited text ({error})") from error
        else:
            for line_number, line in enumerate(stream, start=1):
                if line.strip("\r\n"):
                    yield line_number, line.rstrip("\r\n").split(delimiter)


def _header(path: Path, delimiter: str, quoted: bool, encoding: str) -> list[str]:
    _, header = next(_rows(path, delimiter, quoted, encoding), (0, []))
    if not header:
        raise InputError(f"{path} is empty")
    header[0] = header[0].removeprefix("\ufeff")
    if any("\x00" in name for name in header):
        raise InputError(f"{path} is not text: its first line holds zero bytes")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise InputError(f"{path}:1: column '{min(twice)}' stands twice in the header")
    return header


def _name_the_fault(path: Path, delimiter: str, quoted: bool, encoding: str, width: int) -> None:
    """Raise InputError for the first line with the wrong number of fields, if that is the fault."""
    for line_number, row in _rows(path, delimiter, quoted, encoding):
        if any("\x00" in value for value in row):
            raise InputError(f"{path}:{line_number}: not text, the line holds zero bytes")
        if len(row) != width:
            raise InputError(f"{path}:{line_number}: {len(row)} fields where {width} are expected")
