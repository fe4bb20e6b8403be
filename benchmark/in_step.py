"""The engine under torchrun: every process goes through the same cells, one after the other, in step.

    torchrun --nproc-per-node 8 -m genrec_bench.benchmark.cli run SUITE.yaml

Rank 0 says which cells are missing, holds their locks, ranks and records; the others only train with it. A cell that
fails in all of them leaves its reason; a process that fails alone ends them all, and the same command resumes.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from genrec_bench.benchmark.execute import MethodFault, execute
from genrec_bench.benchmark.process import usable_cores
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.runner import Grid, Outcome, lay_out, lock_of
from genrec_bench.benchmark.suite import Cell
from genrec_bench.methods import distributed, registry


def run_in_step(
    cells: Sequence[Cell], results: Path, progress: Progress, force: bool = False, keep_models: bool = False
) -> Outcome:
    """What `run_grid` does, in the process itself: runs have no time budget, and are not several at a time."""
    results = Path(results).absolute()
    threads = max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    grid = Grid(results, progress, None, force, threads, keep_models)
    first = distributed.rank() == 0
    with distributed.joined():
        with distributed.in_turn():
            laid_out = lay_out(cells, results, progress, keep_models)
        grid.outcome.run_ids = [identity for _, identity, _ in laid_out]
        progress.start(len(cells))
        with progress:
            for cell, identity, dataset_sha256 in laid_out:
                lock = lock_of(identity) if first else None
                try:
                    if lock is not None:
                        lock.acquire()  # while another command runs this cell, wait
                    if distributed.told(first and grid.counts(cell, identity)):
                        continue
                    reason = distributed.agreed(_attempt(cell, grid))
                    if first:
                        grid.close(cell, identity, dataset_sha256, reason)
                    elif reason is not None:
                        grid.outcome.failed[str(cell)] = reason
                finally:
                    if lock is not None:
                        lock.release()
    return grid.outcome


def _attempt(cell: Cell, grid: Grid) -> str | None:
    """Run a cell; why it failed, or None. A method that cannot share its work is rank 0's alone."""
    grid.progress.begin(cell)
    try:
        if registry.get(cell.method).parallel:
            _execute(cell, grid)
        elif distributed.rank() == 0:
            with distributed.alone():
                _execute(cell, grid)
    except MethodFault as error:
        return str(error)
    except MemoryError:
        return "out of memory"
    return None


def _execute(cell: Cell, grid: Grid) -> None:
    execute(cell, grid.results, lambda event: grid.progress.event(cell, event), grid.threads, grid.keep_models)
