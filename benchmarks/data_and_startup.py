"""Seconds to read Amazon Beauty, cold and warm, and to start the command.

    .venv/bin/python benchmarks/data_and_startup.py [--beauty ../shared/data/amazon2014-beauty] [--repeats 7]

Counted: "cold" is `store.import_dataset` into a fresh home folder: reading the gzipped tables, numbering, sorting,
hashing and writing the prepared form. "warm" is `store.load` of it, checksums included, median of ``--repeats``. Both
in this process; the files are in the page cache. Start-up is the wall time of whole processes taking turns, median:
``genrec-bench --help`` beside an empty Python and a bare ``import torch``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from genrec_bench.datasets import store

HERE = Path(__file__).resolve().parent
BEAUTY = HERE.parent.parent / "shared" / "data" / "amazon2014-beauty"
COMMANDS: dict[str, list[str]] = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "genrec-bench --help": [str(Path(sys.executable).with_name("genrec-bench")), "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def reading(beauty: Path, repeats: int) -> tuple[str, list[list[Any]]]:
    """What was read, and rows of cold and warm seconds."""
    with tempfile.TemporaryDirectory(prefix="genrec-home-") as home:
        os.environ["GENREC_BENCH_HOME"] = home
        cold = seconds(lambda: store.import_dataset(beauty, "plain", "beauty-cold"))
        warm = median(seconds(lambda: store.load("beauty-cold")) for _ in range(repeats))
        data = store.load("beauty-cold")
    counts = f"{data.num_users} users, {data.num_items} items, {data.num_interactions} interactions"
    return counts, [["cold: import_dataset", cold, cold / warm], ["warm: store.load", warm, 1.0]]


def starting(repeats: int) -> list[list[Any]]:
    """Rows of median seconds of each command, and their ratio to an empty Python."""
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(repeats + 1):
        for name, command in COMMANDS.items():
            one = seconds(lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
            if turn:  # the first turn fills the page cache
                spent[name].append(one)
    base = median(spent["python -c pass"])
    return [[name, median(times), median(times) / base] for name, times in spent.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beauty", type=Path, default=BEAUTY, help="folder with interactions.tsv.gz and items.tsv.gz")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows = starting(options.repeats)
    print(tabulate(rows, ["process", "s", "of python -c pass"], floatfmt=("", ".3f", ".1f")))
    if not options.beauty.is_dir():
        raise SystemExit(f"{options.beauty} is absent: reading was not measured (--beauty DIR)")
    counts, rows = reading(options.beauty, options.repeats)
    print(f"\nAmazon Beauty: {counts}")
    print(tabulate(rows, ["reading", "s", "of warm"], floatfmt=("", ".3f", ".1f")))


if __name__ == "__main__":
    main()
