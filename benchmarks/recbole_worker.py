"""RecBole's SASRec, run inside RecBole's environment by `sasrec_vs_recbole.py` and `ranking_vs_recbole.py`.

    PYTHON recbole_worker.py train DATA_DIR WORK_DIR --epochs 3
    PYTHON recbole_worker.py rank DATA_DIR WORK_DIR --repeats 3

DATA_DIR is named after the data set and holds DATA_SET.inter. Model, training and evaluation are RecBole's own classes
with their defaults (SASRec: 2 blocks, 2 heads, 64 wide, dropout 0.5, cross-entropy, Adam 1e-3, 2,048 rows a batch);
the only settings are those that make the protocols equal. The last line of output is one JSON object.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import recbole_shim  # noqa: F401 - before RecBole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

PROTOCOL: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "train_neg_sample_args": None,
    "repeatable": True,  # seen items may be recommended, as in ours
    "metrics": ["Recall", "NDCG", "MRR"],
    "topk": [1, 5, 10, 20],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "use_gpu": False,
    "show_progress": False,
}


def prepare(data: Path, work: Path, seed: int) -> tuple[Trainer, Any, Any, Any]:
    """Trainer and the three data loaders; the paths and the seed are the only other settings."""
    settings = {**PROTOCOL, "data_path": str(data.parent), "checkpoint_dir": str(work), "seed": seed}
    config = Config(model="SASRec", dataset=data.name, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = SASRec(config, train.dataset).to(config["device"])
    return Trainer(config, model), train, valid, test


def targets(loader: Any) -> dict[str, str]:
    """The item that each user's held-out row asks for, by the tokens of the data file."""
    data = loader.dataset
    rows = data.inter_feat
    users = data.id2token(data.uid_field, rows[data.uid_field].numpy())
    items = data.id2token(data.iid_field, rows[data.iid_field].numpy())
    return dict(zip(map(str, users), map(str, items), strict=True))


def train(data: Path, work: Path, epochs: int, seed: int) -> dict[str, Any]:
    """NDCG@10 on validation after each epoch, and the seconds of its training and validation."""
    trainer, train_data, valid_data, test_data = prepare(data, work, seed)
    rows = []
    for epoch in range(epochs):
        started, started_cpu = time.perf_counter(), time.process_time()
        trainer._train_epoch(train_data, epoch)
        trained, trained_cpu = time.perf_counter(), time.process_time()
        result = trainer.evaluate(valid_data, load_best_model=False)
        done = time.perf_counter()
        rows.append(
            {
                "ndcg@10": float(result["ndcg@10"]),
                "train_s": trained - started,
                "train_cpu_s": trained_cpu - started_cpu,
                "validate_s": done - trained,
            }
        )
    examples = len(train_data.dataset)
    return {"epochs": rows, "examples": examples, "valid": targets(valid_data), "test": targets(test_data)}


def rank(data: Path, work: Path, repeats: int, seed: int) -> dict[str, Any]:
    """Seconds of whole evaluations of the untrained model on the test rows, and those of them spent in the model."""
    trainer, _, _, test_data = prepare(data, work, seed)
    before = peak_mib()
    in_model = 0.0
    predict = trainer.model.full_sort_predict

    def timed(interaction: Any) -> torch.Tensor:
        nonlocal in_model
        started = time.perf_counter()
        scores: torch.Tensor = predict(interaction)
        in_model += time.perf_counter() - started
        return scores

    trainer.model.full_sort_predict = timed
    runs = []
    for _ in range(repeats):
        in_model = 0.0
        started, started_cpu = time.perf_counter(), time.process_time()
        result = trainer.evaluate(test_data, load_best_model=False)
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
        runs.append({"seconds": seconds, "cpu_s": cpu_s, "model_s": in_model})
    metrics = {name: float(value) for name, value in result.items()}
    return {
        "runs": runs, "metrics": metrics, "users": len(test_data.dataset), "peak_mib": peak_mib(), "before_mib": before
    }  # fmt: skip


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "rank"])
    parser.add_argument("data", type=Path, help="folder of the data set, in RecBole's format")
    parser.add_argument("work", type=Path, help="folder for what RecBole writes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=2020, help="RecBole's default")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "train":
        answer = train(options.data, options.work, options.epochs, options.seed)
    else:
        answer = rank(options.data, options.work, options.repeats, options.seed)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
