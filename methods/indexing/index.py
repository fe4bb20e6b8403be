"""An item index: the code that stands for each item when a language model names items."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.artefacts import canonical_hash


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """Codes of N items on at most L levels.

    ``codes`` (N, L) int32: the code on each level, counted from 0 within the level; -1 past the end of a shorter code.
    ``tokens``: per level, the name of each code. A name that stands on two levels is one and the same token (P5-CID);
    all other builders give each level names of its own. Raises InputError where codes and tokens do not fit.
    """

    codes: np.ndarray
    tokens: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        codes = np.ascontiguousarray(self.codes, dtype=np.int32)
        object.__setattr__(self, "codes", codes)
        if codes.ndim != 2 or codes.shape[1] != len(self.tokens) or not codes.size:
            raise InputError(f"Item index: codes of shape {codes.shape} do not fit {len(self.tokens)} levels of tokens")
        for level, names in enumerate(self.tokens):
            if len(set(names)) != len(names):
                raise InputError(f"Item index: two codes of level {level + 1} have the same token")
        outside = (codes < -1) | (codes >= np.array(self.level_sizes))
        gaps = (codes[:, 1:] >= 0) & (codes[:, :-1] < 0)
        for bad, rule in ((outside.any(1), "a code outside its level"), (gaps.any(1), "a code after its code's end")):
            if bad.any():
                raise InputError(f"Item index: item {int(bad.argmax())} has {rule}")
        if (codes[:, 0] < 0).any():
            raise InputError(f"Item index: item {int((codes[:, 0] < 0).argmax())} has no code")

    @property
    def num_items(self) -> int:
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        return len(self.tokens)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes a level can hold, used or not."""
        return tuple(len(names) for names in self.tokens)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each item's code, (N,) int64."""
        return (self.codes >= 0).sum(1)

    @property
    def variable(self) -> bool:
        """Whether some codes are shorter than others: only then does a code need an end token."""
        return bool((self.lengths < self.num_levels).any())

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token once, level by level."""
        return tuple(dict.fromkeys(name for names in self.tokens for name in names))

    @cached_property
    def token_numbers(self) -> tuple[np.ndarray, ...]:
        """Per level, the position in ``vocabulary`` of each code's token, (K_l,) int64."""
        number = {name: i for i, name in enumerate(self.vocabulary)}
        return tuple(np.array([number[name] for name in names], dtype=np.int64) for names in self.tokens)

    @cached_property
    def item_tokens(self) -> np.ndarray:
        """Each item's code as positions in ``vocabulary``, (N, L) int64, -1 past its end."""
        columns = [
            np.where(column >= 0, numbers[np.maximum(column, 0)], -1)
            for column, numbers in zip(self.codes.T, self.token_numbers, strict=True)
        ]
        return np.stack(columns, axis=1)

    def strings(self, item: int) -> list[str]:
        """The tokens of one item's code."""
        return [names[code] for names, code in zip(self.tokens, self.codes[item], strict=True) if code >= 0]

    @cached_property
    def groups(self) -> np.ndarray:
        """Number of each item's code among the distinct codes, ascending in code order, (N,) int64."""
        return np.unique(self.codes, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def num_distinct(self) -> int:
        """Distinct codes; fewer than items where some collide."""
        return int(self.groups.max()) + 1

    @cached_property
    def sha256(self) -> str:
        """Hash of codes and tokens."""
        return canonical_hash({"codes": self.codes.tolist(), "tokens": [list(names) for names in self.tokens]})

    def save(self, folder: Path) -> None:
        """Write ``codes.npy`` and ``tokens.json``."""
        np.save(folder / "codes.npy", self.codes)
        (folder / "tokens.json").write_text(json.dumps(self.tokens), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "ItemIndex":
        """Read what `save` wrote."""
        tokens = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        return cls(np.load(folder / "codes.npy"), tuple(tuple(names) for names in tokens))


def used_only(index: ItemIndex) -> ItemIndex:
    """The same index without the tokens that no item has; names stay, codes close up. Shared tokens stay."""
    if len(index.vocabulary) < sum(index.level_sizes):
        return index
    columns, tokens = [], []
    for column, names in zip(index.codes.T, index.tokens, strict=True):
        used, numbers = np.unique(column, return_inverse=True)
        columns.append(numbers.reshape(-1))
        tokens.append(tuple(names[code] for code in used))
    return ItemIndex(np.stack(columns, 1), tuple(tokens))


def per_prefix(index: ItemIndex) -> ItemIndex:
    """The same tree of codes with a token of its own for every prefix: none means two things.

    A code of a later level says something only together with those before it (the reason for NCI's prefix-aware
    decoder, Wang et al., NeurIPS 2022, section 3.3). With shared tokens a model must learn that from the data, which
    small data sets do not teach; this spends a row on each node of the tree instead.
    """
    columns = []
    for level in range(index.num_levels):
        column = np.full(index.num_items, -1, dtype=np.int32)
        real = index.codes[:, level] >= 0
        prefixes = index.codes[real, : level + 1]
        column[real] = np.unique(prefixes, axis=0, return_inverse=True)[1].reshape(-1)
        columns.append(column)
    codes = np.stack(columns, 1)
    sizes = (codes.max(0) + 1).tolist()
    stems = [names[0].rpartition("_")[0] for names in index.tokens]
    if not all(stems) or len(set(stems)) < len(stems):
        return ItemIndex(codes, level_tokens(sizes))
    return ItemIndex(
        codes, tuple(tuple(f"{stem}_{code}>" for code in range(size)) for stem, size in zip(stems, sizes, strict=True))
    )


def level_tokens(sizes: tuple[int, ...] | list[int]) -> tuple[tuple[str, ...], ...]:
    """Token names as LETTER and LC-Rec write them: ``<a_0>``, ``<a_1>``, ... on the first level, ``<b_0>`` next."""
    return tuple(tuple(f"<{chr(ord('a') + level)}_{code}>" for code in range(size)) for level, size in enumerate(sizes))
