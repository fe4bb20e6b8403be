"""Training curves for other tools, beside the events.jsonl that every run keeps: TensorBoard, MLflow, Weights & Biases.

    genrec-bench run ... --track tensorboard --track mlflow=http://host:5000 --track wandb=online

Without a place they write under RESULTS/.trackers and use no network: TensorBoard's files, an SQLite file of MLflow's,
W&B in its offline mode. A tracker that fails is given up with one line; the grid goes on.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from genrec_bench.benchmark import records
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.records import Record
from genrec_bench.benchmark.suite import Cell
from genrec_bench.datasets.errors import InputError, unknown

FOLDER = ".trackers"  # in the results folder; git-ignored, and no record's place
PROJECT = "genrec-bench"
WANDB = "0.19.10"  # the first that keeps several runs of one process apart (reinit="create_new")


class Tracker(Protocol):
    """What receives the news of running cells; several cells run at a time."""

    def begin(self, cell: Cell) -> None:
        """A cell starts."""

    def log(self, cell: Cell, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one training event; ``step`` is its epoch, or its place among the events without one."""

    def end(self, cell: Cell, record: Record | None, reason: str | None) -> None:
        """A cell is over: with its ``record``, or with the ``reason`` why it has none.

        With both: ``record`` is that of a run which took its place, with half the batch.
        """


class TensorBoard:
    """A folder a run, with its curve and its test metrics."""

    def __init__(self, place: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._place, self._open, self._writers = Path(place), SummaryWriter, dict[Cell, Any]()

    def begin(self, cell: Cell) -> None:
        self._writers[cell] = self._open(str(self._place / _slug(cell)))

    def log(self, cell: Cell, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[cell].add_scalar(name, value, step)

    def end(self, cell: Cell, record: Record | None, reason: str | None) -> None:
        writer = self._writers.pop(cell)
        for name, value in _results(record).items():
            writer.add_scalar(f"test/{name}", value, 0)
        writer.add_text("outcome", reason or "recorded")
        writer.close()


class MLflow:
    """A run of the experiment `PROJECT` for each cell."""

    def __init__(self, place: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow 3 tells its makers of its use
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise _missing("mlflow") from None
        self._client = MlflowClient(tracking_uri=place)
        known = self._client.get_experiment_by_name(PROJECT)
        self._experiment = self._client.create_experiment(PROJECT) if known is None else known.experiment_id
        self._runs: dict[Cell, str] = {}

    def begin(self, cell: Cell) -> None:
        self._runs[cell] = identity = self._client.create_run(self._experiment, run_name=str(cell)).info.run_id
        for name, value in _facts(cell).items():
            self._client.log_param(identity, name, str(value)[:500])

    def log(self, cell: Cell, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._runs[cell], name.replace("@", "/"), value, step=step)  # @ is not allowed

    def end(self, cell: Cell, record: Record | None, reason: str | None) -> None:
        self.log(cell, 0, {f"test/{name}": value for name, value in _results(record).items()})
        if reason is not None:
            self._client.set_tag(self._runs[cell], "reason", reason)
        self._client.set_terminated(self._runs.pop(cell), "FAILED" if record is None else "FINISHED")


class WandB:
    """A W&B run a cell: online where that is asked for, else files that `wandb sync` sends later."""

    def __init__(self, place: str) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb", WANDB) from None
        if _numbers(wandb.__version__) < _numbers(WANDB):
            raise InputError(f"--track wandb needs {WANDB} or later, not {wandb.__version__}: pip install -U wandb")
        self._wandb, self._online, self._runs = wandb, place == "online", dict[Cell, Any]()
        self._folder = None if self._online else Path(place)

    def begin(self, cell: Cell) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._runs[cell] = self._wandb.init(
            project=PROJECT,
            name=str(cell),
            config=_facts(cell),
            mode="online" if self._online else "offline",
            dir=None if self._folder is None else str(self._folder),
            reinit="create_new",  # several cells at a time
        )

    def log(self, cell: Cell, step: int, values: Mapping[str, float]) -> None:
        self._runs[cell].log({**values, "epoch": step})

    def end(self, cell: Cell, record: Record | None, reason: str | None) -> None:
        run = self._runs.pop(cell)
        run.summary.update({f"test/{name}": value for name, value in _results(record).items()})
        run.finish(exit_code=0 if record is not None else 1)


TRACKERS: dict[str, Callable[[str], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def progress(quiet: bool, names: Sequence[str], results: Path) -> Progress:
    """What a grid reports to: the terminal, and the trackers of ``names``, each NAME or NAME=PLACE.

    Raises InputError for an unknown name and a library that is missing.
    """
    return Tracked(quiet, [_open(name, results) for name in names], results) if names else Progress(quiet)


def _open(asked: str, results: Path) -> tuple[str, Tracker]:
    name, _, place = asked.partition("=")
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    default = (Path(results) / FOLDER / name).absolute()
    if name == "mlflow" and not place:
        default.parent.mkdir(parents=True, exist_ok=True)
        place = f"sqlite:///{default}.db"
    try:
        return name, TRACKERS[name](place or str(default))
    except InputError:
        raise
    except Exception as error:  # the libraries' errors have no common base
        raise InputError(f"--track {asked}: {name} does not start: {' '.join(str(error).split())[:300]}") from None


class Tracked(Progress):
    """A `Progress` that tells trackers too."""

    def __init__(self, quiet: bool, trackers: Sequence[tuple[str, Tracker]], results: Path) -> None:
        super().__init__(quiet)
        self._trackers, self._results = list(trackers), Path(results)
        self._events: dict[Cell, int] = {}  # of the cells at work

    def begin(self, cell: Cell) -> None:
        super().begin(cell)
        self._events[cell] = 0
        self._tell(lambda tracker: tracker.begin(cell))

    def event(self, cell: Cell, values: dict[str, Any]) -> None:
        super().event(cell, values)
        self._events[cell] = step = self._events.get(cell, 0) + 1
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch"
        }
        epoch = values.get("epoch")
        if numbers:
            self._tell(lambda tracker: tracker.log(cell, epoch if isinstance(epoch, int) else step, numbers))

    def finished(self, cell: Cell, note: str) -> None:
        super().finished(cell, note)
        if self._events.pop(cell, None) is not None:  # else: there already
            record = self._record(cell)
            self._tell(lambda tracker: tracker.end(cell, record, None))

    def failed(self, cell: Cell, reason: str, instead: str | None = None) -> None:
        super().failed(cell, reason, instead)
        if self._events.pop(cell, None) is not None:
            record = None if instead is None else self._record(cell, instead)
            self._tell(lambda tracker: tracker.end(cell, record, reason))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for cell in list(self._events):
            del self._events[cell]
            self._tell(lambda tracker, cell=cell: tracker.end(cell, None, "stopped"))  # type: ignore[misc]

    def _record(self, cell: Cell, identity: str | None = None) -> Record | None:
        with suppress(InputError):
            place = (cell.dataset, cell.method, identity or _run_id(cell))
            return records.read(records.run_folder(self._results, *place))
        return None

    def _tell(self, news: Callable[[Tracker], None]) -> None:
        for one in list(self._trackers):
            try:
                news(one[1])
            except Exception as error:  # somebody else's library, disk or network: no reason to lose a grid
                self._trackers.remove(one)
                self.say(f"tracker {one[0]} given up: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _missing(name: str, least: str = "") -> InputError:
    wanted = f"'{name}>={least}'" if least else name
    return InputError(f"--track {name} needs the library: pip install {wanted}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _run_id(cell: Cell) -> str:
    from genrec_bench.benchmark.execute import run_id
    from genrec_bench.datasets import store

    return run_id(cell, store.load(cell.dataset).sha256)


def _exclude(cell: Cell) -> str | None:
    return cell.rules.exclude if cell.rules.name == "cand20" else None


def _slug(cell: Cell) -> str:
    """A folder of the run's own, so that no two runs' curves are drawn as one."""
    rules = cell.rules.name + "-mask_seen" * cell.rules.mask_seen + "-window" * (_exclude(cell) == "window")
    label = "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in cell.label)
    return f"{cell.dataset}/{rules}/{cell.scale}/{label}-seed{cell.seed}-{_run_id(cell)}"


def _facts(cell: Cell) -> dict[str, Any]:
    """What a cell is, flat enough for a tracker's table."""
    return {
        "method": cell.method, "label": cell.label, "dataset": cell.dataset, "protocol": cell.rules.name,
        "mask_seen": cell.rules.mask_seen, "exclude": _exclude(cell), "seed": cell.seed, "tier": cell.scale,
        "run": _run_id(cell),
        **{f"config.{name}": value for name, value in cell.config.model_dump(mode="json").items()},
    }  # fmt: skip


def _results(record: Record | None) -> dict[str, float]:
    return {} if record is None else {name: one.mean for name, one in record.metrics.items()}
