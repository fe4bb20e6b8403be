"""One way to an item index: its inputs are gathered, it is built once for all methods and runs, judged, and logged."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.indexing.collaborative import collaborative_index
from genrec_bench.methods.indexing.collisions import separate, sinkhorn_repair, with_counter
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.dual import dual_index
from genrec_bench.methods.indexing.files import read_item_index
from genrec_bench.methods.indexing.hierarchical import branching, hierarchical_codes, standardised
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens, per_prefix, used_only
from genrec_bench.methods.indexing.quality import quality_report, refuse_poor
from genrec_bench.methods.indexing.random_codes import check_space, random_codes
from genrec_bench.methods.indexing.residual import Quantised, residual_codes
from genrec_bench.methods.indexing.rqvae import rqvae_codes

T = TypeVar("T")
VERSION = 1  # of this stage: raise it when the same inputs and config give another index

_QUANTISER = ("levels", "codes", "collisions", "separate_identical", "sinkhorn_epsilon", "vocabulary", "seed")
_NETWORK = (
    "hidden", "dim", "commitment", "epochs", "batch", "learning_rate", "weight_decay", "uniform_last_level",
)  # fmt: skip


@dataclass(frozen=True)
class _Inputs:
    """What a builder may read; ``text`` and ``behaviour`` only where it asks for them."""

    train: TrainView
    config: IndexConfig
    context: Context
    checkpoint: Checkpoint
    text: np.ndarray | None  # (N, d) float32
    behaviour: np.ndarray | None  # (N, dim) float32


@dataclass(frozen=True)
class _Builder:
    """How an index is built, and the config fields and inputs that determine it."""

    build: Callable[[_Inputs], tuple[ItemIndex, dict[str, Any]]]  # also gives facts for the report
    fields: tuple[str, ...]
    needs: Callable[[IndexConfig], set[str]] = lambda config: set()  # of "text", "behaviour", "sequences"


def build_index(
    train: TrainView,
    context: Context,
    config: IndexConfig,
    checkpoint: Checkpoint | None = None,
    vectors: np.ndarray | None = None,
) -> ItemIndex:
    """The item index that ``config`` asks for, from the cache where it has been built before.

    ``checkpoint`` keeps the training state of RQ-VAE and LETTER and must not be the method's own. ``vectors`` (N, d)
    replaces the text vectors that ``config.vectors`` names. Raises InputError for inputs that do not fit, PoorIndex
    where the finished index is below the config's thresholds.
    """
    _check_file(config)  # before the cache may answer with the index of another file
    builder = BUILDERS[config.builder]
    inputs = _gather(builder, train, context, config, checkpoint, vectors)

    def build(folder: Path) -> None:
        index, facts = builder.build(inputs)
        index.save(folder)
        report = quality_report(index, inputs.text) | facts
        (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    folder = context.artefacts.get("index", _key(builder, inputs), build)
    index = ItemIndex.load(folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    context.log(stage="index", builder=config.builder, **report)
    refuse_poor(report, config)
    return index


def _gather(
    builder: _Builder,
    train: TrainView,
    context: Context,
    config: IndexConfig,
    checkpoint: Checkpoint | None,
    vectors: np.ndarray | None,
) -> _Inputs:
    needs = builder.needs(config)
    if "text" in needs and vectors is None:
        from genrec_bench.methods.encoders.text import text_vectors

        vectors = text_vectors(train.items, config.vectors, context)
    if vectors is not None and len(vectors) != train.num_items:
        raise ValueError(f"vectors of {len(vectors)} items do not fit a catalogue of {train.num_items}")
    behaviour = None
    if "behaviour" in needs:
        from genrec_bench.methods.encoders.behaviour import behaviour_vectors, with_cold_items

        behaviour = behaviour_vectors(train, context, config.behaviour, config.dim, config.seed)
        if config.builder == "dual":
            behaviour = with_cold_items(behaviour, train.item_counts() > 0, vectors)
    return _Inputs(train, config, context, checkpoint or Checkpoint(None), vectors, behaviour)


def _key(builder: _Builder, inputs: _Inputs) -> dict[str, Any]:
    """Everything that determines the index and its report."""
    sequences, config = inputs.train.sequences, inputs.config
    key: dict[str, Any] = {
        "version": VERSION,
        "builder": config.builder,
        "items": inputs.train.num_items,
        "config": config.model_dump(mode="json", include=set(builder.fields)),
    }
    if inputs.text is not None:
        key["text"] = _hash(inputs.text)
    if inputs.behaviour is not None:
        key["behaviour"] = _hash(inputs.behaviour)
    if "sequences" in builder.needs(config):
        key["sequences"] = [_hash(sequences.offsets), _hash(sequences.items)]
    if (file := config.file) is not None:
        key["file"] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        key["by_number"] = file.name.endswith(".index.json")
        key["item_ids"] = canonical_hash(inputs.train.items["item_id"].tolist())
    return key


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _random(inputs: _Inputs) -> tuple[ItemIndex, dict[str, Any]]:
    config = inputs.config
    codes = random_codes(inputs.train.num_items, config.levels, config.codes, config.seed)
    return _trimmed(ItemIndex(codes, level_tokens((config.codes,) * config.levels)), config), {}


def _hierarchical(inputs: _Inputs) -> tuple[ItemIndex, dict[str, Any]]:
    config, text = inputs.config, _required(inputs.text)
    children = branching(len(text), config.levels, config.codes)
    vectors = standardised(text) if config.standardise else text
    codes = hierarchical_codes(vectors, config.levels, children, config.seed)
    return _trimmed(ItemIndex(codes, level_tokens((children,) * config.levels)), config), {}


def _residual(inputs: _Inputs) -> tuple[ItemIndex, dict[str, Any]]:
    config, text = inputs.config, _required(inputs.text)
    _check_space(len(text), config)
    return _from_quantised(residual_codes(text, config.levels, config.codes, config.seed), config)


def _rqvae(inputs: _Inputs) -> tuple[ItemIndex, dict[str, Any]]:
    config, text = inputs.config, _required(inputs.text)
    _check_space(len(text), config)
    quantised = rqvae_codes(
        text, inputs.behaviour, config, inputs.checkpoint, inputs.context.device, inputs.context.log
    )
    return _from_quantised(quantised, config)


def _dual(inputs: _Inputs) -> tuple[ItemIndex, dict[str, Any]]:
    config = inputs.config
    index, facts = dual_index(inputs.train.num_items, inputs.text, inputs.behaviour, config)
    return _trimmed(index, config), facts


def _collaborative(inputs: _Inputs) -> tuple[ItemIndex, dict[str, Any]]:
    config, train = inputs.config, inputs.train
    index = collaborative_index(train.sequences, train.num_items, config.clusters, config.cluster_limit, config.seed)
    return _trimmed(index, config), {}


def _file(inputs: _Inputs) -> tuple[ItemIndex, dict[str, Any]]:
    config = inputs.config
    index = read_item_index(_required(config.file), inputs.train.items["item_id"].tolist())
    index = with_counter(index) if config.policy == "counter" else index
    return _trimmed(index, config), {}


def _check_file(config: IndexConfig) -> None:
    """Raise InputError where the file is not the one that the config means."""
    if config.sha256 is None or (file := config.file) is None or not file.is_file():
        return
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != config.sha256:
        raise InputError(f"{file} has sha256 {found}, but index.sha256 is {config.sha256}: it is another file")


def _check_space(items: int, config: IndexConfig) -> None:
    """A counter level names as many items as there are; without one, all items need a code."""
    if config.policy != "counter":
        check_space(items, config.levels, config.codes)


def _from_quantised(quantised: Quantised, config: IndexConfig) -> tuple[ItemIndex, dict[str, Any]]:
    """Apply the collision policy; the report says how many items it moved."""
    codes = quantised.codes
    if config.policy == "sinkhorn":
        codes = sinkhorn_repair(quantised, config.sinkhorn_epsilon)
    if config.policy == "nearest" or (config.policy == "sinkhorn" and config.separate_identical):
        codes = separate(codes, quantised.residuals, quantised.codebook)
    index = ItemIndex(codes, level_tokens((config.codes,) * config.levels))
    if config.policy == "counter":
        index = with_counter(index)
    facts = {
        "distinct_before_repair": len(np.unique(quantised.codes, axis=0)),
        "moved_by_repair": int((codes != quantised.codes).any(1).sum()),
        "reconstruction_error": quantised.reconstruction_error,
    }
    return _trimmed(index, config), facts


def _trimmed(index: ItemIndex, config: IndexConfig) -> ItemIndex:
    if config.vocabulary == "prefix":
        return per_prefix(index)
    return used_only(index) if config.vocabulary == "used" else index


def _required(value: T | None) -> T:
    assert value is not None  # `_gather` and the config's validator saw to it
    return value


def _of_text(config: IndexConfig) -> set[str]:
    return {"text"}


def _of_both(config: IndexConfig) -> set[str]:
    return {"text", "behaviour"}


def _of_mode(config: IndexConfig) -> set[str]:
    modes = {"random": set(), "semantic": {"text"}, "behavior": {"behaviour"}, "unit": {"text", "behaviour"}}
    return modes[config.mode]


BUILDERS: dict[str, _Builder] = {
    "random": _Builder(_random, ("levels", "codes", "vocabulary", "seed")),
    "hierarchical": _Builder(_hierarchical, ("levels", "codes", "vocabulary", "seed", "standardise"), _of_text),
    "residual": _Builder(_residual, _QUANTISER, _of_text),
    "rqvae": _Builder(_rqvae, _QUANTISER + _NETWORK, _of_text),
    "letter": _Builder(_rqvae, (*_QUANTISER, *_NETWORK, "alpha", "beta", "groups"), _of_both),
    "dual": _Builder(_dual, ("levels", "codes", "mode", "layout", "leaf", "leaf_size", "vocabulary", "seed"), _of_mode),
    "collaborative": _Builder(
        _collaborative, ("clusters", "cluster_limit", "vocabulary", "seed"), lambda config: {"sequences"}
    ),
    "file": _Builder(_file, ("collisions", "vocabulary")),
}
