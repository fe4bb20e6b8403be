"""Index files: LETTER's and LC-Rec's ``X.index.json`` (item number -> tokens), and the same keyed by item id.

Tokens are ``<a_17>``, the letter naming the level, or P5-CID's ``<CI 17>``, which mean the same on every level and may
come in codes of several lengths.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.readers.files import opened
from genrec_bench.datasets.readers.letter import read_index, write_index
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

LEVEL_CODES = 256  # of published indices; a level has these whether used or not, so that the vocabulary is the same
SHARED_CODES = 500  # of P5-CID
MAX_CODE = 1_000_000  # a larger number is a fault, not a codebook
MAX_LEVELS = 26  # letters

_LEVEL_TOKEN = re.compile(r"<([a-z])_(0|[1-9][0-9]{0,6})>")
_SHARED_TOKEN = re.compile(r"<CI (0|[1-9][0-9]{0,6})>")


def read_item_index(path: Path | str, item_ids: Sequence[str]) -> ItemIndex:
    """The index of a file; row i is the item with id ``item_ids[i]`` (``*.index.json``: the item with number i).

    Raises InputError for an item that is missing, unknown or there twice, a token that is malformed, and for codes of
    unequal lengths unless they are P5-CID's. Two items with one code are a collision, which is allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: an index file is needed")
    rows = _rows(path, item_ids)
    name = [f"{path}: item '{item_id}'" for item_id in item_ids]
    shared = _SHARED_TOKEN.fullmatch(rows[0][0]) is not None
    return (_shared_index if shared else _level_index)(rows, name)


def write_item_index(path: Path | str, index: ItemIndex) -> None:
    """Write ``index`` as LETTER and LC-Rec publish theirs, byte for byte: item number -> tokens, on one line."""
    write_index(path, {item: index.strings(item) for item in range(index.num_items)})


def _rows(path: Path, item_ids: Sequence[str]) -> list[list[str]]:
    """Tokens of each item, in the order of ``item_ids``."""
    found, wanted = _entries(path, item_ids)
    known = set(wanted)
    unknown = [key for key in found if key not in known]
    missing = [key for key in wanted if key not in found]
    if missing or unknown:
        what = [f"has no code for {len(missing)} items, such as '{missing[0]}'"] if missing else []
        what += [f"has codes for {len(unknown)} items that are not in it, such as '{unknown[0]}'"] if unknown else []
        raise InputError(f"{path} ({len(found)} items; the data set has {len(item_ids)}) {' and '.join(what)}")
    for key in wanted:
        tokens = found[key]
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"{path}: item '{key}' must have a list of code tokens (strings), at least one")
    return [found[key] for key in wanted]


def _entries(path: Path, item_ids: Sequence[str]) -> tuple[dict[Any, Any], Sequence[Any]]:
    """The file's entries, and the keys that it must have."""
    content = _unrepeated(path)
    if not path.name.endswith(".index.json"):
        return content, item_ids
    by_number = read_index(path)
    if len(by_number) < len(content):
        raise InputError(f"{path}: two keys are the same item number (leading zeros?)")
    return by_number, range(len(item_ids))


def _unrepeated(path: Path) -> dict[str, Any]:
    """A JSON object; InputError where it is none, or a key stands in it twice (JSON readers keep the last)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in content if keys.count(key) > 1)
            raise InputError(f"{path}: item '{twice}' has two entries")
        return content

    with opened(path) as stream:
        try:
            content = json.load(stream, object_pairs_hook=unique)
        except (InputError, UnicodeDecodeError):
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not usable JSON ({error})") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} must hold a JSON object with at least one entry")
    return content


def _level_index(rows: list[list[str]], name: list[str]) -> ItemIndex:
    levels = len(rows[0])
    if levels > MAX_LEVELS:
        raise InputError(f"{name[0]} has {levels} tokens; at most {MAX_LEVELS} are possible")
    codes = np.zeros((len(rows), levels), dtype=np.int64)
    for item, tokens in enumerate(rows):
        if len(tokens) != levels:
            raise InputError(f"{name[item]} has {len(tokens)} tokens, others have {levels}: lengths must be equal")
        for level, token in enumerate(tokens):
            letter = chr(ord("a") + level)
            match = _LEVEL_TOKEN.fullmatch(token)
            if match is None or match[1] != letter or int(match[2]) > MAX_CODE:
                raise InputError(f"{name[item]}: token '{token}' is not <{letter}_NUMBER>, as the {letter} level needs")
            codes[item, level] = int(match[2])
    return ItemIndex(codes, level_tokens([_size(column, LEVEL_CODES) for column in codes.T]))


def _shared_index(rows: list[list[str]], name: list[str]) -> ItemIndex:
    codes = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for item, tokens in enumerate(rows):
        for level, token in enumerate(tokens):
            match = _SHARED_TOKEN.fullmatch(token)
            if match is None or int(match[1]) > MAX_CODE:
                raise InputError(f"{name[item]}: token '{token}' is not <CI NUMBER>, as others of this file are")
            codes[item, level] = int(match[1])
    return ItemIndex(codes, (shared_tokens(_size(codes, SHARED_CODES)),) * codes.shape[1])


def _size(codes: np.ndarray, usual: int) -> int:
    return max(usual, int(codes.max()) + 1)


def shared_tokens(count: int) -> tuple[str, ...]:
    """P5-CID's tokens, the same on every level."""
    return tuple(f"<CI {code}>" for code in range(count))
