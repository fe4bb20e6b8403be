"""Which engine runs a grid: the local one, or Ray with what only it is asked for. Ray is imported where it runs."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.methods import distributed

if TYPE_CHECKING:
    from genrec_bench.benchmark.progress import Progress
    from genrec_bench.benchmark.runner import Outcome
    from genrec_bench.benchmark.suite import Cell

ENGINES = ("local", "ray")
OnRay = dict[str, Any]  # arguments that only the engine ray has: its address, and resources by method


def on_ray(
    engine: str, address: str | None = None, resources: Mapping[str, Mapping[str, Any]] | None = None, dash: str = ""
) -> OnRay | None:
    """What only the engine ray asks for; None: the local one. ``dash`` stands before an argument's name in a message.

    Raises InputError for an unknown engine, for Ray's arguments without Ray, and where Ray cannot be had.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "local":
        if address or resources:
            raise InputError(f"{dash}address and {dash}resources are of {dash}engine ray")
        return None
    if distributed.world_size() > 1:
        raise InputError(f"{dash}engine ray starts its processes itself: run the command without torchrun")
    if find_spec("ray") is None:
        raise InputError(f"{dash}engine ray needs Ray: pip install 'genrec-bench[ray]'")
    return {"address": address, "resources": resources or {}}


def run_cells(
    cells: Sequence["Cell"],
    results: Path,
    progress: "Progress",
    budget_s: float | None,
    force: bool,
    jobs: int | None,
    keep_models: bool,
    ray: OnRay | None,
) -> "Outcome":
    """Run what is missing of a grid: on Ray with those arguments, or here; both write the same records."""
    if ray is None:
        from genrec_bench.benchmark.runner import run_grid

        return run_grid(cells, results, progress, budget_s, force, jobs, keep_models)
    from genrec_bench.benchmark.ray_engine import run_on_ray

    return run_on_ray(cells, results, progress, budget_s, force, jobs, keep_models, **ray)
