"""Readers: one small module a file format, all giving the same `Events`.

The registry names functions as text, so that asking for the list of formats imports none of them.
"""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec_bench.datasets.errors import InputError, unknown

if TYPE_CHECKING:
    from genrec_bench.datasets.events import Events

# format name -> module and function; a reader takes a path and keyword options
READERS = {
    "plain": "plain:read_plain",
    "letter": "letter:read_letter",
    "recbole": "recbole:read_recbole",
    "s3rec": "s3rec:read_s3rec",
    "amazon2014": "amazon:read_amazon2014",
    "amazon2018": "amazon:read_amazon2018",
    "movielens": "movielens:read_movielens",
    "hetrec-lastfm": "lastfm:read_lastfm",
    "steam": "steam:read_steam",
    "yelp": "yelp:read_yelp",
}


def reader(format: str) -> "Callable[..., Events]":
    """The function that reads ``format``; InputError with the nearest names if there is none."""
    if format not in READERS:
        raise unknown("format", format, READERS)
    module, function = READERS[format].split(":")
    found: Callable[..., Events] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return found


def read(path: Path | str, format: str, **options: Any) -> "Events":
    """Read ``path`` (a folder, or the main file) as ``format``.

    Raises InputError for an unknown format or option, and for anything in the files that breaks the format's rules.
    """
    function = reader(format)
    allowed = list(inspect.signature(function).parameters)[1:]
    for key in options:
        if key not in allowed:
            if not allowed:
                raise InputError(f"Format '{format}' takes no options, but '{key}' was given")
            raise unknown(f"option of format '{format}'", key, allowed)
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    return function(path, **options)
