"""JSON lines: wanted fields as columns, fast through pyarrow; only a faulty file is read again, to name its line."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.readers.files import blocks, lines

_BLOCK_BYTES = 1 << 24


def read_json_lines(path: Path, fields: dict[str, pa.DataType]) -> pa.Table:
    """Columns ``fields`` of every line; InputError with the line where one is missing or of another type."""
    schema = pa.schema(list(fields.items()))
    try:
        table = pa.concat_tables([_parsed(block, schema) for block in blocks(path, _BLOCK_BYTES) if block.strip()])
        table.validate(full=True)  # the parser lets through text that is not UTF-8
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        _name_the_fault(path, fields)
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if any(table[name].null_count for name in fields):
        _name_the_fault(path, fields)
    return table


def _parsed(block: bytes, schema: pa.Schema) -> pa.Table:
    # pyarrow (26.0) crashes the process when the first value of a block is `null` and not an object.
    if not block.lstrip().startswith(b"{"):
        raise pa.ArrowInvalid("a line does not start with {")
    return pa_json.read_json(
        io.BytesIO(block),
        read_options=pa_json.ReadOptions(block_size=len(block) + 1),
        parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )


def parse_record(line: str, path: Path, line_number: int) -> dict[str, Any]:
    """The JSON object on a line; InputError if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{line_number}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}:{line_number}: not a JSON object")
    return record


def seconds(values: pa.ChunkedArray, path: Path) -> np.ndarray:
    """Dates `2019-01-31` or `2019-01-31 12:00:00` -> seconds since 1970, float64."""
    text = pc.utf8_trim_whitespace(values)
    text = pc.if_else(pc.equal(pc.utf8_length(text), 10), pc.binary_join_element_wise(text, "00:00:00", " "), text)
    parsed = pc.strptime(text, format="%Y-%m-%d %H:%M:%S", unit="s", error_is_null=True)
    if parsed.null_count:
        row = int(pc.is_null(parsed).to_numpy().argmax())
        raise InputError(f"{path}: row {row + 1}: '{values[row].as_py()}' is not a date like 2019-01-31 12:00:00")
    return pc.cast(parsed, pa.int64()).to_numpy().astype(np.float64)


def _name_the_fault(path: Path, fields: dict[str, pa.DataType]) -> None:
    """Raise InputError for the first line that is not JSON, lacks a field or has another type in it."""
    for line_number, line in lines(path):
        record = parse_record(line, path, line_number)
        for name, kind in fields.items():
            if record.get(name) is None:
                raise InputError(f"{path}:{line_number}: no field '{name}'")
            wanted: type | tuple[type, ...] = str if pa.types.is_string(kind) else (int, float)
            if not isinstance(record[name], wanted):
                rule = "text" if wanted is str else "a number"
                raise InputError(f"{path}:{line_number}: field '{name}' is {record[name]!r}, which is not {rule}")
