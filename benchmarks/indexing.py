"""Item indices: how good each builder's is on a data set, and how fast the tree of clusters is built.

    python benchmarks/indexing.py --quality amazon2014-beauty [--published FILE] [--builders random,residual,...]
    python benchmarks/indexing.py [--items 100000] [--dim 768] [--threads 2]
    python benchmarks/indexing.py --large

The first prints the table of docs/item_indices.md (data set prepared before; training interactions of the full
protocol). The second times hierarchical k-means of generated vectors down to single items, 256 children a node, against
ONE flat ``MiniBatchKMeans(256)`` of scikit-learn over the same vectors, in turns; the bound is ten times as long. The
third builds the tree of 1,000,000 vectors of 256 numbers: it must end on 2 cores within 8 GiB.

On a busy machine use ``--threads 1``: with more threads than free cores the clock measures waiting at barriers.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from genrec_bench.datasets import store
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.encoders.text import text_vectors
from genrec_bench.methods.indexing.build import BUILDERS, build_index
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.hierarchical import hierarchical_codes
from genrec_bench.methods.indexing.quality import quality_report

CHILDREN = 256


def mixture(items: int, dim: int, centres: int = 2000) -> np.ndarray:
    """Unit vectors around ``centres`` points of uneven popularity, (items, dim) float32."""
    rng = np.random.default_rng(0)
    weight = 1.0 / np.arange(1, centres + 1) ** 0.7
    of = rng.choice(centres, items, p=weight / weight.sum())
    vectors = rng.standard_normal((centres, dim), dtype=np.float32)[of]
    for start in range(0, items, 65_536):  # in place: a million vectors leave no room for copies
        part = vectors[start : start + 65_536]
        part += rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def depth_of(items: int) -> int:
    """Levels until leaves of one item with room to spare."""
    return next(depth for depth in range(1, 9) if CHILDREN**depth >= 2 * items)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def race(items: int, dim: int, turns: int) -> None:
    """Print both times, of each turn and in the median."""
    from sklearn.cluster import MiniBatchKMeans

    vectors, depth = mixture(items, dim), depth_of(items)
    rows = []
    for turn in range(turns):
        flat, _ = timed(lambda: MiniBatchKMeans(CHILDREN, random_state=0).fit(vectors))
        tree, codes = timed(lambda: hierarchical_codes(vectors, depth, CHILDREN, seed=0))
        assert len(np.unique(codes, axis=0)) == items
        rows.append([turn + 1, flat, tree, tree / flat])
    rows.append(["median", *(median(row[column] for row in rows) for column in (1, 2, 3))])
    print(f"{items:,} vectors of {dim} numbers, depth {depth}, {CHILDREN} children, {torch.get_num_threads()} threads")
    print(tabulate(rows, ["turn", "flat MiniBatchKMeans s", "tree s", "times as long"], floatfmt=".2f"))
    print("bound: 10 times as long")


def large(items: int, dim: int) -> None:
    """Print seconds and peak memory of one large tree, and of the quality report on it."""
    vectors, depth = mixture(items, dim), depth_of(items)
    spent, codes = timed(lambda: hierarchical_codes(vectors, depth, CHILDREN, seed=0))
    assert len(np.unique(codes, axis=0)) == items
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{items:,} vectors of {dim} numbers, depth {depth}: {spent:.0f} s, peak memory {peak:.2f} GiB")
    from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

    index = ItemIndex(codes, level_tokens((CHILDREN,) * depth))
    spent, _ = timed(lambda: quality_report(index, vectors))
    print(f"quality report: {spent:.1f} s")


def quality(dataset: str, builders: list[str], published: str | None) -> None:
    """Print one row a builder, default config; every report judges against the same text vectors."""
    train = leave_one_out(store.load(dataset)).train
    with tempfile.TemporaryDirectory() as scratch:
        root = store.home() / "artefacts"
        quiet = Context(0, "cpu", "tiny", Checkpoint(None), ArtefactCache(root), lambda method: 0.0)
        text = text_vectors(train.items, IndexConfig().vectors, quiet)
        rows = []
        for name in builders:
            if name == "file" and published is None:
                continue
            config = IndexConfig(builder=name, path=published if name == "file" else None)
            if name == "letter":  # its behaviour vectors are another stage: outside the clock
                from genrec_bench.methods.encoders.behaviour import behaviour_vectors

                behaviour_vectors(train, quiet, config.behaviour, config.dim, config.seed)
            reports: list[dict[str, Any]] = []
            context = Context(
                0, "cpu", "tiny", Checkpoint(None), ArtefactCache(Path(scratch) / name), lambda method: 0.0,
                log=lambda reports=reports, **values: reports.append(values),
            )  # fmt: skip
            context.artefacts = _SharedEncoders(Path(scratch) / name, root)
            spent, _ = timed(lambda config=config, context=context: build_index(train, context, config, None, text))
            rows.append(row_of("published LETTER file" if name == "file" else name, reports[-1], spent))
            print(f"{name}: {spent:.1f} s", flush=True)
    print(f"\n{dataset}: {train.num_items:,} items, {torch.get_num_threads()} threads\n")
    print(tabulate(rows, COLUMNS, tablefmt="github", disable_numparse=True))


class _SharedEncoders(ArtefactCache):
    """Indices are built anew, so that their time is measured; the encoders' vectors come from the common cache."""

    def __init__(self, root: Path, encoders: Path):
        super().__init__(root)
        self._encoders = ArtefactCache(encoders)

    def get(self, stage: str, key: Any, build: Callable[[Path], None]) -> Path:
        return super().get(stage, key, build) if stage == "index" else self._encoders.get(stage, key, build)


COLUMNS = [
    "builder",
    "distinct codes",
    "before repair",
    "codes used per level",
    "perplexity per level",
    "prefix bits per depth",
    "first token shared by neighbours (by chance)",
    "common prefix of neighbours (by chance)",
    "relative error",
    "seconds",
]


def row_of(name: str, report: dict[str, Any], seconds: float) -> list[str]:
    """One builder's line of the table."""

    def listed(values: list[float], digits: int) -> str:
        return " ".join(f"{value:.{digits}f}" for value in values)

    error = report.get("reconstruction_error")
    return [
        name,
        f"{report['distinct']:,}",
        f"{report['distinct_before_repair']:,}" if "distinct_before_repair" in report else "",
        listed(report["used"], 0),
        listed(report["perplexity"], 0),
        listed(report["prefix_bits"], 1),
        f"{report['neighbours_first_token']:.3f} ({report['random_first_token']:.3f})",
        f"{report['neighbours_common_prefix']:.2f} ({report['random_common_prefix']:.2f})",
        "" if error is None else f"{error:.3f}",
        f"{seconds:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", metavar="DATASET", help="a prepared data set")
    parser.add_argument("--builders", default=",".join(BUILDERS))
    parser.add_argument("--published", metavar="FILE", help="index file for builder `file`")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--items", type=int)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 2))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quality:
        quality(options.quality, options.builders.split(","), options.published)
    elif options.large:
        large(options.items or 1_000_000, options.dim or 256)
    else:
        race(options.items or 100_000, options.dim or 768, options.turns)


if __name__ == "__main__":
    main()
