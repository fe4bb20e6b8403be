"""How it is measured. `run`, `tune` and `leaderboard` are the suite from Python (`genrec_bench.benchmark.api`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrec_bench.benchmark.api import leaderboard, run, tune

__all__ = ["leaderboard", "run", "tune"]


def __getattr__(name: str) -> Any:
    """Import the API when it is asked for: the command line imports this package, and must not import pandas."""
    if name in __all__:
        from genrec_bench.benchmark import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
