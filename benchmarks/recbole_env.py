"""A throw-away virtual environment with RecBole 1.2.1 in it, so that nothing of the rival touches ours.

Not a command: `sasrec_vs_recbole.py` and `ranking_vs_recbole.py` call it. RecBole asks for ``ray<=2.6.3`` and other
versions that no longer install beside a current torch, so it comes with ``--no-deps`` and only what SASRec needs is
added, at the versions of our constraints.txt: both sides run the same torch and NumPy. `recbole_shim.py` bridges the
rest inside that environment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genrec_bench.datasets.interactions import InteractionData

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parent / "constraints.txt"
RIVAL = "recbole==1.2.1"
NEEDS = ("torch==2.13.0", "numpy", "scipy", "pandas", "tqdm", "colorlog", "colorama", "scikit-learn", "pyyaml",
         "tabulate", "texttable", "psutil")  # fmt: skip


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option that both scripts share."""
    parser.add_argument(
        "--rival-env",
        type=Path,
        help="folder of RecBole's virtual environment, made if absent (default: a temporary one)",
    )


@contextmanager
def rival_python(folder: Path | None) -> Iterator[Path]:
    """Its Python interpreter; a temporary environment is removed afterwards."""
    if folder is not None:
        yield _create(folder.expanduser().resolve())
        return
    with tempfile.TemporaryDirectory(prefix="recbole-env-") as temporary:
        yield _create(Path(temporary))


def _create(folder: Path) -> Path:
    """Make the environment unless it is there already."""
    python, finished = folder / "bin" / "python", folder / "ready"
    if not finished.exists():
        print(f"installing {RIVAL} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", CONSTRAINTS, *NEEDS], check=True)
        subprocess.run([*pip, "--no-deps", RIVAL], check=True)
        finished.touch()
    return python


def run_json(command: list[str | Path], threads: int, **environment: str) -> dict[str, Any]:
    """Run a command in a process of its own; its last line of output is one JSON object."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits, **environment}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def export(data: InteractionData, parent: Path) -> Path:
    """Write a data set as RecBole reads it; both sides then hold the same sequences.

    Never under its own name: RecBole ignores ``data_path`` for "ml-100k" and reads the copy in its package instead.
    The time column is the place in the user's sequence: RecBole scales times to float32, where close ones become equal.
    """
    name = f"exported-{data.name}"
    folder = parent / name
    folder.mkdir(parents=True)
    lengths = data.sequences.lengths
    place = np.arange(len(data.sequences.items)) - np.repeat(data.sequences.offsets[:-1], lengths)
    table = pd.DataFrame(
        {
            "user_id:token": np.repeat(data.sequences.users, lengths),
            "item_id:token": data.sequences.items,
            "timestamp:float": place,
        }
    )
    table.to_csv(folder / f"{name}.inter", sep="\t", index=False)
    return folder
