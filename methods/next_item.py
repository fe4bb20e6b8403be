"""Training of causal next-item models: every position of a sequence is an example, in one pass.

One row per prefix, as most code bases train, costs 6.6 times the tokens on Amazon Beauty and 20 times on MovieLens-100K
for the same targets. Here a batch holds whole sequences (or windows of long ones) of similar length, right-padded: with
causal models padding on the right is never seen by a real position, so no mask is needed.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods import losses
from genrec_bench.methods.base import Context, Method, MethodConfig, Rate, Resources, Scale
from genrec_bench.methods.precision import product_dtype
from genrec_bench.methods.scoring import Scorer


class TrainingConfig(MethodConfig):
    """What `train_epochs` goes by."""

    learning_rate: PositiveFloat = 1e-3
    epochs: PositiveInt = 200
    patience: PositiveInt = 10  # validations without a better score before training stops

    batch_field: ClassVar[str | None] = "batch_positions"  # a field of all that derive from this


class NextItemConfig(TrainingConfig):
    """What all next-item models share."""

    dim: PositiveInt = 64  # width of item vectors and of the model
    max_length: PositiveInt = 50  # most recent items a prediction looks at
    dropout: Rate = 0.5  # of the embedded items
    loss: Literal["ce", "sampled_ce", "bce"] = "ce"  # full softmax, shared uniform negatives, one negative a position
    negatives: PositiveInt = 1024  # of sampled_ce, per step
    low_precision_loss: bool = True  # bf16 products in the full softmax, where the processor has them
    weight_decay: NonNegativeFloat = 0.0
    batch_positions: PositiveInt = 1024  # targets a step: positions weigh the same whatever the lengths


class NextItemModel(Protocol):
    """A causal model: hidden states that predict the item after each position."""

    def __call__(self, items: Tensor) -> Tensor:
        """(B, L) item numbers, right-padded with num_items -> (B, L, dim)."""

    def item_table(self) -> Tensor:
        """(num_items, dim) output vectors."""


def windows(sequences: Histories, max_length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Start and end (exclusive) of training windows into ``sequences.items``; the targets are one further.

    A sequence of at most ``max_length`` + 1 items is one window; a longer one is cut at a random phase, new each epoch,
    so that no position is always the first of its window.
    """
    inputs = sequences.lengths - 1
    first = sequences.offsets[:-1]
    short = (inputs > 0) & (inputs <= max_length)
    starts, ends = [first[short]], [first[short] + inputs[short]]
    for row in np.flatnonzero(inputs > max_length):
        cuts = np.arange(rng.integers(1, max_length + 1), inputs[row], max_length)
        starts.append(first[row] + np.concatenate([[0], cuts]))
        ends.append(first[row] + np.concatenate([cuts, [inputs[row]]]))
    return np.concatenate(starts), np.concatenate(ends)


def batches(
    sequences: Histories, max_length: int, positions: int, pad: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch: ``(inputs (B, L), mask (B, L), targets (P,))``, about ``positions`` targets each, in random order."""
    starts, ends = windows(sequences, max_length, rng)
    if not len(starts):  # no sequence has two items
        return
    lengths = ends - starts
    order = np.lexsort((rng.random(len(lengths)), lengths))  # similar lengths together, random among equals
    number = (np.cumsum(lengths[order]) - 1) // positions
    groups = np.split(order, np.flatnonzero(np.diff(number)) + 1)
    for group in (groups[i] for i in rng.permutation(len(groups))):
        column = np.arange(lengths[group].max())
        mask = column < lengths[group][:, None]
        at = (starts[group][:, None] + column)[mask]
        inputs = np.full(mask.shape, pad, dtype=np.int64)
        inputs[mask] = sequences.items[at]
        targets = sequences.items[at + 1].astype(np.int64)
        yield torch.from_numpy(inputs), torch.from_numpy(mask), torch.from_numpy(targets)


@dataclass
class _Progress:
    """Where training stands between two epochs."""

    epoch: int = 0
    steps: int = 0
    best: float = -1.0
    since_best: int = 0


def train_next_item(
    model: nn.Module,
    method: Method,
    train: TrainView,
    config: NextItemConfig,
    context: Context,
    averaging: float = 0.0,
) -> None:
    """Train ``model`` (a `NextItemModel`) to predict the item after every position, as `train_epochs` does."""
    step_losses = partial(_next_item_losses, model, train, config, context.device)
    train_epochs(model, method, config, context, step_losses, config.weight_decay, averaging)


def train_epochs(
    model: nn.Module,
    method: Method,
    config: TrainingConfig,
    context: Context,
    step_losses: Callable[[np.random.Generator], Iterator[Tensor]],
    weight_decay: float = 0.0,
    averaging: float = 0.0,
    validation_users: int = 0,
) -> None:
    """Train ``model`` until validation stops improving; leaves the best epoch's weights in it.

    ``step_losses`` yields the loss of each step of an epoch, and a step is taken before it goes on. ``method`` is what
    ``context.validate`` asks for recommendations: its model is ``model``. With ``averaging`` > 0 the weights that are
    validated and kept are a moving average, which forgets by that factor a step. Resumes from the context's checkpoint;
    an epoch's random numbers depend on (seed, epoch) alone, so a resumed run equals an undisturbed one.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=weight_decay, fused=True)
    progress = _Progress()
    average, best_weights = _copy(model), _copy(model)
    if (saved := context.checkpoint.load()) is not None:
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, best_weights = saved["average"], saved["best_weights"]
        progress = _Progress(**saved["progress"])
    while progress.epoch < config.epochs and progress.since_best < config.patience:
        started = time.monotonic()
        model.train()
        rng = np.random.default_rng([context.seed, progress.epoch])
        loss = _epoch(model, optimiser, step_losses(rng), progress, average, averaging)
        trained = time.monotonic()
        current = _copy(model)
        if not averaging:
            average = current
        model.load_state_dict(average)
        model.eval()
        score = context.validate(method, users=validation_users)
        progress.epoch += 1
        progress.since_best += 1
        if score > progress.best:
            progress.best, progress.since_best, best_weights = score, 0, _copy(model)
        model.load_state_dict(current)
        context.log(
            epoch=progress.epoch,
            loss=loss,
            validation=score,
            best=progress.best,
            train_s=trained - started,
            validate_s=time.monotonic() - trained,
        )
        if context.checkpoint.due():
            context.checkpoint.save(
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average,
                    "best_weights": best_weights,
                    "progress": vars(progress),
                }
            )
    model.load_state_dict(best_weights)
    model.eval()


def _epoch(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    step_losses: Iterator[Tensor],
    progress: _Progress,
    average: dict[str, Tensor],
    averaging: float,
) -> float:
    """One step a loss, ``average`` following the weights; returns the mean loss of a step."""
    taken = []
    for loss in step_losses:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        progress.steps += 1
        if averaging:
            _follow(average, model, averaging, progress.steps)
        taken.append(loss.detach())
    return float(torch.stack(taken).mean()) if taken else 0.0


def _next_item_losses(
    model: nn.Module, train: TrainView, config: NextItemConfig, device: str, rng: np.random.Generator
) -> Iterator[Tensor]:
    for batch in batches(train.sequences, config.max_length, config.batch_positions, train.num_items, rng):
        inputs, mask, targets = (part.to(device) for part in batch)
        yield next_item_loss(model(inputs)[mask], model.item_table(), targets, config, rng)  # type: ignore[operator]


def next_item_loss(
    hidden: Tensor, table: Tensor, targets: Tensor, config: NextItemConfig, rng: np.random.Generator
) -> Tensor:
    """The loss that ``config`` names: hidden (P, d) against the vectors (N, d) of all items, targets (P,)."""
    if config.loss == "ce":
        return losses.full_softmax(hidden, table, targets, product_dtype(config.low_precision_loss, hidden.device.type))
    count = config.negatives if config.loss == "sampled_ce" else len(targets)
    negatives = torch.from_numpy(rng.integers(0, len(table), count)).to(hidden.device)
    return (losses.sampled_softmax if config.loss == "sampled_ce" else losses.binary)(hidden, table, targets, negatives)


@torch.no_grad()
def _follow(average: dict[str, Tensor], model: nn.Module, averaging: float, step: int) -> None:
    """Move the average of ``step`` - 1 past weights towards the current ones; the initial weights count for nothing."""
    share = (1.0 - averaging) / (1.0 - averaging**step)
    for name, weights in model.state_dict().items():
        average[name].lerp_(weights, share)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.inference_mode()
def next_item_scores(model: nn.Module, histories: Histories, max_length: int) -> Tensor:
    """Scores of all items as the continuation of each history, (B, num_items) float32."""
    recent = histories.last(max_length)
    table: Tensor = model.item_table()  # type: ignore[operator]
    device = table.device
    hidden = model(torch.from_numpy(recent.padded(pad=len(table))).to(device))  # (B, L, dim)
    last = torch.from_numpy(np.maximum(recent.lengths - 1, 0)).to(device)  # an empty history reads the padding vector
    return hidden[torch.arange(len(hidden), device=device), last] @ table.T


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write ``model``'s weights as safetensors."""
    save_model(model, str(folder / "weights.safetensors"))


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read what `save_weights` wrote into a model of the same shape."""
    load_model(model, str(folder / "weights.safetensors"))
    model.eval()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All and trainable parameters."""
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


class TrainedScorer(Scorer):
    """A scorer that is one network: its weights are all there is to save. Subclasses make ``model`` in `_build`."""

    model: Any

    @classmethod
    def resources(cls, config: Any, scale: Scale) -> Resources:
        return Resources(gpus=0.25)  # a small network: four of them keep a GPU busy

    @abstractmethod
    def _build(self, train: TrainView, context: Context) -> None:
        """Set ``model``, on the context's device."""

    def save(self, folder: Path) -> None:
        save_weights(self.model, folder)

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        self._build(train, context)
        load_weights(self.model, folder)

    def item_vectors(self) -> dict[str, np.ndarray]:
        table = self.model.item_table()
        return {"items": table.detach().float().cpu().numpy()}

    def parameters(self) -> tuple[int, int]:
        return count_parameters(self.model)
