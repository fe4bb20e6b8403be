"""Lines that are Python literals (`{u'name': 'value', ...}`) instead of JSON, as in Steam and old Amazon files.

Never evaluated as code: flat records go through a regular expression that accepts nothing but them, everything else
through `ast.literal_eval`.
"""

import ast
import re
import warnings
from pathlib import Path
from typing import Any

from genrec_bench.datasets.errors import InputError

_STRING = r"""u?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_PAIR = re.compile(rf"[{{,]\s*({_STRING})\s*:\s*({_STRING}|[-+.\w]+)\s*", re.DOTALL)


def parse_literal(line: str, path: Path, line_number: int) -> dict[str, Any]:
    """The record on a line; InputError if it is no dictionary literal."""
    flat = _flat_record(line)
    if flat is not None:
        return flat
    try:
        record = _literal(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(f"{path}:{line_number}: not a Python literal or JSON") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}:{line_number}: not a dictionary")
    return record


def _flat_record(line: str) -> dict[str, str] | None:
    """A record of strings and bare values (kept as text), far faster than `literal_eval`; None if not flat."""
    record, position = {}, 0
    while match := _PAIR.match(line, position):
        key, value = match.groups()
        try:
            record[_unquoted(key)] = _unquoted(value) if value[-1] in "'\"" else value
        except (ValueError, SyntaxError):  # a broken escape: literal_eval says so with the line
            return None
        position = match.end()
    return record if record and line[position:].strip() == "}" else None


def _unquoted(token: str) -> str:
    if "\\" in token:
        return str(_literal(token))
    return token[2:-1] if token[0] == "u" else token[1:-1]


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about odd escapes in other people's text
        return ast.literal_eval(text)
