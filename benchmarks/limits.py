"""Measured figures against what a script wants of them. Not a command: the scripts of this folder end with `judged`."""

from typing import NamedTuple


class Limit(NamedTuple):
    """A figure and where it has to stay."""

    what: str
    found: float
    limit: float
    unit: str = ""
    at_least: bool = False  # else at most

    @property
    def kept(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def __str__(self) -> str:
        side = "at least" if self.at_least else "at most"
        verdict = "kept" if self.kept else "NOT KEPT"
        return f"{self.what}: {self.found:.4g}{self.unit}, wanted {side} {self.limit:.4g}{self.unit}: {verdict}"


def judged(*limits: Limit) -> int:
    """Print each figure beside its limit; the exit code: 1 where one is not kept."""
    for one in limits:
        print(one)
    return int(not all(one.kept for one in limits))
