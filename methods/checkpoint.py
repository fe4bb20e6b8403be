"""Training state that survives a kill: written atomically, restored with the random state: resuming is exact."""

import os
import time
from pathlib import Path
from typing import Any

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import distributed

SLOW_S = 1.0  # a save that takes longer is made seldom enough to cost a twentieth of the time


class Checkpoint:
    """One file of training state in ``folder``; ``elapsed_s`` counts training seconds over all attempts.

    ``every_s`` bounds how much work a kill can cost; saving more often only costs time. Of several processes all ask
    at the same points of their work, and rank 0 writes.
    """

    def __init__(self, folder: Path | None, every_s: float = 10.0):
        self._path = Path(folder) / "training.pt" if folder is not None else None
        self._every_s = every_s
        self._started = self._saved = time.monotonic()
        self._elapsed_before_s = 0.0
        self._stages: list[Checkpoint] = []

    @property
    def resumed(self) -> bool:
        """Whether training goes on from an earlier attempt's state."""
        return self.earlier_s > 0

    @property
    def earlier_s(self) -> float:
        """Seconds of the attempts that ended before this one."""
        return self._elapsed_before_s

    def beside(self, name: str) -> "Checkpoint":
        """Another checkpoint in the same place, for a stage beside the training itself; its seconds count here."""
        stage = Checkpoint(None if self._path is None else self._path.parent / name, self._every_s)
        self._stages.append(stage)
        return stage

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far, those of killed attempts up to their last checkpoint included."""
        # once training itself goes on, its own count has that of its stages in it
        before = self._elapsed_before_s or sum(stage._elapsed_before_s for stage in self._stages)
        return before + time.monotonic() - self._started

    def load(self) -> dict[str, Any] | None:
        """The saved state, its random state restored; None where there is none, or it is damaged.

        Raises InputError where several processes do not see the same file.
        """
        state = self._load()
        # an answer of all: nobody goes on, and saves again, before the last has read
        if len(set(distributed.all_of(None if state is None else self._elapsed_before_s))) > 1:
            raise InputError(f"The processes see different files in {self._path}: $GENREC_BENCH_HOME must be shared")
        return state

    def _load(self) -> dict[str, Any] | None:
        import torch

        if self._path is None or not self._path.exists():
            return None
        try:
            # mapped, all processes of a machine hold one copy
            shared = distributed.world_size() > 1
            saved = torch.load(self._path, weights_only=True, map_location="cpu", mmap=shared)
            state: dict[str, Any] = saved["state"]
            elapsed_s = float(saved["elapsed_s"])
            if torch.cuda.is_available() and saved["cuda_rng"]:
                torch.cuda.set_rng_state(saved["cuda_rng"][0])
            torch.set_rng_state(saved["torch_rng"])
        except Exception:  # torch names damage in many ways; training from scratch gives the same result, only later
            return None
        self._elapsed_before_s = elapsed_s
        self._started = self._saved = time.monotonic()
        return state

    def due(self) -> bool:
        """Whether enough time has passed since the last save to be worth another."""
        return self._path is not None and distributed.told(time.monotonic() - self._saved >= self._every_s)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state by ``state`` (tensors, numbers, strings, lists and dicts of them)."""
        import torch

        if self._path is None or distributed.rank() > 0:
            return
        started = time.monotonic()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(f".tmp{os.getpid()}")
        # of this process's GPU alone: the machine that goes on may have fewer
        cuda_rng = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        content = {
            "state": state,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": cuda_rng,
            "elapsed_s": self.elapsed_s,
        }
        try:
            with unfinished.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())  # the rename must not outlive the content in a power cut
            os.replace(unfinished, self._path)
        finally:
            unfinished.unlink(missing_ok=True)
        self._saved = time.monotonic()
        if (took_s := self._saved - started) > SLOW_S:
            self._every_s = max(self._every_s, 20 * took_s)
