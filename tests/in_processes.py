"""Small trainings for `test_multi_process`, run in one process by it and in several by torchrun:

torchrun --standalone --nproc-per-node 2 tests/in_processes.py FOLDER
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec_bench.benchmark.execute import _Validation
from genrec_bench.benchmark.protocols import protocol
from genrec_bench.datasets import synthetic
from genrec_bench.methods import distributed, registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.language import training
from genrec_bench.methods.language.backbone import tiny_llama
from genrec_bench.methods.language.sharing import share

INDEX = {"builder": "random", "levels": 2, "codes": 8}
COMMON = {
    "dropout": 0.0, "bf16": False, "epochs": 2, "learning_rate": 0.01, "averaging": 0.5, "max_history": 6, "beam": 5,
    "index": INDEX,
}  # fmt: skip
SMALL = {"layers": 2, "width": 16, "heads": 2, "feedforward": 33}  # 33: two processes' parts differ in size
TIGER = {**COMMON, **SMALL, "architecture": "decoder_only", "batch_tokens": 200}
FEW_ROWS = {"batch_tokens": 45, "micro_batches": 2, "epochs": 1}  # three a step, and the epoch's last step has one
LC_REC = {**COMMON, **SMALL, "batch_tokens": 600, "text_examples": 30}
SHARDED = {"sharding": True}
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiger": ("tiger", TIGER),
    "tiger in parts": ("tiger", {**TIGER, "micro_batches": 2}),
    "tiger of few rows": ("tiger", {**TIGER, **FEW_ROWS}),
    "tiger of few rows sharded": ("tiger", {**TIGER, **FEW_ROWS, **SHARDED, "gradient_checkpointing": True}),
    "encoder-decoder": ("tiger", {**COMMON, **SMALL, "rows": 64, "epochs": 1}),
    "lc_rec": ("lc_rec", LC_REC),
    "lc_rec in parts": ("lc_rec", {**LC_REC, "micro_batches": 2}),
    "lc_rec sharded": ("lc_rec", {**LC_REC, **SHARDED}),
    "lc_rec sharded adapters": ("lc_rec", {**LC_REC, **SHARDED, "epochs": 1, "lora": {"r": 2, "dropout": 0.0}}),
}


EAGER = {
    **COMMON, **SMALL, "batch_tokens": 600, "cit": {"reconstruction": 20, "preference": 20},
    "index": {"mode": "random", "codes": 8, "behaviour": "svd", "dim": 4}, "gct": {"lambda_s": 0.5, "lambda_b": 0.5},
    "aat": {"learning_rate": 0.01, "lora": {"r": 2, "dropout": 0.0}},
}  # fmt: skip
TRAININGS |= {
    "eager_llm in parts": ("eager_llm", {**EAGER, "micro_batches": 2}),
    "eager_llm sharded": ("eager_llm", {**EAGER, **SHARDED, "epochs": 1}),
}

RESUMED = {
    "tiger with dropout": ("tiger", {**TIGER, "dropout": 0.3}),
    "lc_rec sharded, with dropout": ("lc_rec", {**LC_REC, **SHARDED, "dropout": 0.3, "epochs": 1}),
}
LEFT = "lc_rec sharded"  # killed in several processes, left for one to finish


class Killed(Exception):
    """What ends a training in its middle."""


def train(name: str, folder: Path, kill_at: int = -1, checkpoint: Path | None = None) -> dict[str, Any]:
    """Loss of every step, validation of every epoch, final weights. Killed in step ``kill_at``, counted from 0."""
    method_name, values = {**TRAININGS, **RESUMED}[name]
    data = synthetic.generate(num_users=60, num_items=40, seed=3, min_length=6, max_length=12, name="tiny")
    rules = protocol("full")
    split = rules.split(data)
    losses: list[float] = []
    events: list[dict[str, Any]] = []

    class Noted(training._Stepper):
        def step(self, batch: Any, progress: Any) -> float:
            if len(losses) == kill_at:
                raise Killed
            losses.append(super().step(batch, progress))
            return losses[-1]

    context = Context(
        seed=0,
        device="cpu",
        scale="tiny",
        checkpoint=Checkpoint(checkpoint, every_s=0.0),
        artefacts=ArtefactCache(folder / "artefacts"),
        validate=_Validation(rules, split.valid, data.num_items),
        log=lambda **values: events.append(values),
    )
    torch.manual_seed(distributed.rank())  # processes begin alike because they are told to, not by luck
    method: Any = registry.get(method_name)(registry.configure(method_name, values))
    before, training._Stepper = training._Stepper, Noted
    try:
        method.fit(split.train, context)
    except Killed:
        pass
    finally:
        training._Stepper = before
    return {
        "losses": losses,
        "validation": [event["validation"] for event in events if "validation" in event],
        "weights": {key: value.detach().clone() for key, value in method.model.state_dict().items()},
        "ranking": torch.from_numpy(method.recommend(split.valid.histories.select(np.arange(8)), 5).scores)
        if kill_at < 0
        else None,
    }


def shard_twice() -> None:
    """A method may train its model a second time; whole again, it is as any other model."""
    model = tiny_llama(30, layers=2, dim=16, heads=2, feedforward=33)
    kinds, tokens = [type(module) for module in model.modules()], torch.arange(5)[None]
    expected = model(tokens).logits
    for _ in range(2):
        whole_again = share(model, sharding=True, bf16=False)
        assert torch.allclose(model(tokens).logits, expected, atol=1e-6)
        whole_again()
    assert [type(module) for module in copy.deepcopy(model).modules()] == kinds


def main(folder: Path) -> None:
    """All trainings, and of some a killed and resumed one; what became of each is left in ``folder`` by rank."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with distributed.joined():
        assert distributed.world_size() == int(os.environ["WORLD_SIZE"])
        for name in {**TRAININGS, **RESUMED}:
            found[name] = train(name, folder)
        for name in RESUMED:
            place = folder / f"{name} killed"
            train(name, folder, kill_at=len(found[name]["losses"]) - 2, checkpoint=place)
            found[f"{name} resumed"] = train(name, folder, checkpoint=place)
        train(LEFT, folder, kill_at=4, checkpoint=folder / LEFT)
        shard_twice()
        torch.save(found, folder / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
