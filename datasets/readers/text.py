"""Item texts as sources hold them -> the one-line strings of the item table."""

import html
import re
from collections.abc import Iterable
from typing import Any

_TAG = re.compile(r"<[^<>]{1,200}>")


def tidy(value: Any) -> str:
    """Text on one line: entities resolved, tags removed, white space closed up; a list is joined, None is empty."""
    if value is None:
        return ""
    if isinstance(value, list):
        value = " ".join(str(part) for part in value)
    text = str(value)
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    return " ".join(text.split())


def joined(value: Any, separator: str | None = None) -> str:
    """Categories joined by `|`, each once, in order; a string is split at ``separator``, nested lists are flattened."""
    if isinstance(value, str) and separator:
        value = value.split(separator)
    names = (tidy(name).replace("|", "/") for name in _flat(value if isinstance(value, list) else [value]))
    return "|".join(dict.fromkeys(name for name in names if name))


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
