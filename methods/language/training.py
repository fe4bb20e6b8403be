"""The training loop of language models: AdamW, cosine schedule with warm-up, averaging, exact resume.

A step is one batch, in parts where the memory asks for it, and of several processes (torchrun) each takes its rows; the
gradient is that of the whole batch either way. Data order depends on (seed, epoch) alone, so a resumed run equals an
undisturbed one, bit for bit on a CPU.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from genrec_bench.methods import distributed
from genrec_bench.methods.base import Context, Method, MethodConfig, Rate
from genrec_bench.methods.decoding.tokens import unwrapped
from genrec_bench.methods.dropout import dropout
from genrec_bench.methods.language import attention
from genrec_bench.methods.language.batches import Packed, Pairs
from genrec_bench.methods.language.sharing import SharedWeights, share
from genrec_bench.methods.precision import product_dtype, products

Batch = Packed | Pairs


class Divisible(Protocol):
    """A batch that can be computed in parts. ``levels`` has a number from -1 on for each target (`TokenSequences`)."""

    @property
    def levels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def part(self, first: int, last: int) -> Self: ...

    def to(self, device: str) -> Self: ...


B = TypeVar("B", bound=Divisible)


class TrainingConfig(MethodConfig):
    """How a language model is trained."""

    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    warmup: Rate = 0.02  # share of all steps in which the learning rate rises from 0
    min_rate: Rate = 0.1  # learning rate at the end of the cosine, as a share of the highest
    max_gradient: PositiveFloat = 1.0  # norm that gradients are cut to
    batch_tokens: PositiveInt = 4096  # positions a step
    micro_batches: PositiveInt = 1  # parts a step is computed in (gradient accumulation)
    epochs: PositiveInt = 30
    patience: PositiveInt = 5  # validations without a better score before training stops
    validate_every: PositiveInt = 1  # epochs
    validation_users: NonNegativeInt = 2000  # fixed sample that selects the epoch; 0: all
    dropout: Rate = 0.2
    averaging: Rate = 0.998  # of the weights, a step; 0 keeps the last ones
    bf16: bool = True  # bf16 products where the processor has them (weights and optimiser stay float32)
    gradient_checkpointing: bool = False  # recompute activations instead of keeping them
    sharding: bool = False  # under torchrun: layers' weights spread over the processes, not whole in each

    def less_memory(self) -> "TrainingConfig":
        return self.model_copy(update={"micro_batches": 2 * self.micro_batches})


class TrainingDiverged(ArithmeticError):
    """The loss is no number any more."""


@dataclass
class _Progress:
    """Where training stands; ``step`` counts within the epoch."""

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best: float = -1.0
    since_best: int = 0
    loss: float = 0.0  # summed over the epoch's steps


def train_language_model(
    model: nn.Module,
    method: Method,
    epoch_batches: Callable[[np.random.Generator], Iterator[B]],
    loss_of: Callable[[B], Tensor],
    config: TrainingConfig,
    context: Context,
    begin_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train ``model`` until validation stops improving or the epochs are over; leaves the best weights in it.

    ``epoch_batches(rng)`` gives an epoch's batches; ``loss_of(batch)`` the summed loss of its targets. Only parameters
    that require a gradient are trained, averaged, kept and saved. Raises TrainingDiverged, naming the step, when the
    loss is no longer a number: the last checkpoint, from before, stays. ``begin_epoch`` is told the number of an epoch,
    from 0, before its batches are asked for. Of several processes all validate, in step: a
    sharded model needs all of them to answer; rank 0's score counts.
    """
    low = product_dtype(config.bf16, context.device) == torch.bfloat16
    if config.bf16 and not low:
        context.log(stage="train", note="this processor has no bfloat16 products: they are computed in float32")
    whole_again = share(model, config.sharding, low)
    weights = SharedWeights(model)
    trained = weights.parts
    decayed = [value for value in trained.values() if value.ndim > 1]
    plain = [value for value in trained.values() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    progress = _Progress()
    average, best_weights = _copy(trained), _copy(trained)
    if (saved := context.checkpoint.load()) is not None:
        _put(trained, weights.spread(saved["weights"]))
        weights.spread_state(optimiser, saved["optimiser"])
        average, best_weights = weights.spread(saved["average"]), weights.spread(saved["best_weights"])
        progress = _Progress(**saved["progress"])

    def save() -> None:
        context.checkpoint.save(
            {
                "weights": weights.gathered(trained),
                "optimiser": weights.gathered_state(optimiser),
                "average": weights.gathered(average),
                "best_weights": weights.gathered(best_weights),
                "progress": asdict(progress),
            }
        )

    steps_an_epoch = sum(1 for _ in epoch_batches(np.random.default_rng([context.seed, 0])))
    stepper = _Stepper(model, weights, optimiser, loss_of, config, context, steps_an_epoch)
    while progress.epoch < config.epochs and progress.since_best < config.patience:
        started = time.monotonic()
        begin_epoch(progress.epoch)
        _epoch(stepper, epoch_batches, trained, average, progress, save)
        trained_s = time.monotonic() - started
        loss, progress.loss = progress.loss / max(progress.step, 1), 0.0
        progress.epoch, progress.step = progress.epoch + 1, 0
        event: dict[str, Any] = {"epoch": progress.epoch, "loss": loss, "train_s": trained_s}
        if progress.epoch % config.validate_every == 0 or progress.epoch == config.epochs:
            current = _copy(trained)
            _put(trained, average)
            model.eval()
            started = time.monotonic()
            score = distributed.told(context.validate(method, users=config.validation_users))
            progress.since_best += 1
            if score > progress.best:
                progress.best, progress.since_best, best_weights = score, 0, _copy(trained)
            _put(trained, current)
            event |= {"validation": score, "best": progress.best, "validate_s": time.monotonic() - started}
        context.log(**event)
        if context.checkpoint.due():
            save()
    save()  # a kill while items are ranked does not cost training
    _put(trained, best_weights)
    whole_again()
    model.eval()


def _epoch(
    stepper: "_Stepper[B]",
    epoch_batches: Callable[[np.random.Generator], Iterator[B]],
    trained: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    progress: _Progress,
    save: Callable[[], None],
) -> None:
    """The rest of an epoch from ``progress.step`` on, ``average`` following the weights."""
    stepper.model.train()
    rng = np.random.default_rng([stepper.context.seed, progress.epoch])
    with _attention_for_training(stepper.model, stepper.context.device):
        for number, batch in enumerate(epoch_batches(rng)):
            if number < progress.step:  # done before the kill
                continue
            progress.loss += stepper.step(batch, progress)
            progress.step, progress.total_steps = progress.step + 1, progress.total_steps + 1
            _follow(average, trained, stepper.config.averaging, progress.total_steps)
            if stepper.context.checkpoint.due():
                save()


class _Stepper(Generic[B]):
    """One optimiser step, in as many parts as the memory asks for, of this process's rows."""

    def __init__(
        self,
        model: nn.Module,
        weights: SharedWeights,
        optimiser: torch.optim.Optimizer,
        loss_of: Callable[[B], Tensor],
        config: TrainingConfig,
        context: Context,
        steps_an_epoch: int,
    ):
        self.model, self.weights, self.optimiser, self.loss_of = model, weights, optimiser, loss_of
        self.config, self.context = config, context
        self.steps = max(steps_an_epoch * config.epochs, 2)  # the rate of the last step may be 0, of an only one not
        self.parts, self.halved = config.micro_batches, False

    def step(self, batch: B, progress: _Progress) -> float:
        """Mean loss of the batch's targets; weights moved."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * schedule((progress.total_steps + 1) / self.steps, self.config)
        if distributed.world_size() > 1:  # other dropout in each process, and the same again after a resume
            torch.manual_seed(_seed_of(self.context.seed, progress.total_steps, distributed.rank()))
        total = self._gradients_in_parts(batch)
        self.weights.collect(total)
        loss = float(total)
        if not math.isfinite(loss):
            where = f"epoch {progress.epoch + 1}, step {progress.step + 1} (step {progress.total_steps + 1} in all)"
            raise TrainingDiverged(f"the loss became {loss} in {where}; try a lower learning_rate than "
                                   f"{self.config.learning_rate:g}")  # fmt: skip
        self.weights.clip(self.config.max_gradient)
        self.optimiser.step()
        return loss

    def _gradients_in_parts(self, batch: B) -> Tensor:
        """`_gradients`; where the memory does not hold it, in twice the parts from then on."""
        try:
            return self._gradients(batch)
        except torch.OutOfMemoryError as error:
            if self.weights.sharded:  # the other processes are amid this layer, and cannot begin again with this one
                raise MemoryError(f"out of memory with micro_batches={self.parts}: try more") from error
            if self.halved or len(batch) < 2:
                raise MemoryError("out of memory, also with half the batch") from error
        # outside the handler, whose exception keeps the failed batch alive
        self.parts, self.halved = self.parts * 2, True
        self.context.log(stage="train", note=f"out of memory: steps are computed in {self.parts} parts from now on")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._gradients_in_parts(batch)

    def _gradients(self, batch: B) -> Tensor:
        """Gradients of the loss over this process's rows, and that loss, a scalar."""
        self.weights.forget_gradients()
        device = self.context.device
        targets = max(int((batch.levels >= -1).sum()), 1)
        edges = self._edges(len(batch))
        total = torch.zeros((), device=device)
        for first, last in pairwise(edges):
            # all processes run a sharded model equally often, one without rows on a row that counts for nothing
            rows = (first, last) if last > first else (0, 1)
            part = batch.part(*rows) if rows != (0, len(batch)) else batch
            with products(self.config.bf16, device):
                loss = self.loss_of(part.to(device)) * ((last > first) / targets)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _edges(self, rows: int) -> list[int]:
        """Where the parts of this process's share of ``rows`` begin, and the last one's end."""
        count, rank = distributed.world_size(), distributed.rank()
        first, last = rows * rank // count, rows * (rank + 1) // count
        parts = max(min(self.parts, -(-rows // count)), 1)
        return [int(edge) for edge in np.linspace(first, last, parts + 1)]


def _seed_of(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def schedule(share: float, config: TrainingConfig) -> float:
    """Learning rate after ``share`` of all steps, as a part of the highest: linear warm-up, then a cosine."""
    if share < config.warmup:
        return share / config.warmup
    progress = min((share - config.warmup) / (1 - config.warmup), 1.0)
    return config.min_rate + (1 - config.min_rate) * 0.5 * (1 + math.cos(math.pi * progress))


@contextmanager
def _attention_for_training(model: nn.Module, device: str) -> Iterator[None]:
    """On a CPU, `attention.causal_attention` or the model's plain one: torch's fused kernel is slow backwards there."""
    bare = unwrapped(model)
    config = getattr(bare, "config", None)
    if device != "cpu" or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    bare.set_attn_implementation(attention.register() if attention.applies(config) else "eager")
    try:
        yield
    finally:
        bare.set_attn_implementation("sdpa")


def add_dropout(model: nn.Module, probability: float) -> None:
    """Dropout on the embedded tokens and on what each block adds; Llama-like models have none of their own."""
    if probability == 0.0:
        return

    def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return dropout(output, probability, module.training)

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("embed_tokens", "o_proj", "down_proj"):
            module.register_forward_hook(hook)


@torch.no_grad()
def _follow(average: dict[str, Tensor], trained: dict[str, nn.Parameter], averaging: float, step: int) -> None:
    """Move the average of past weights towards the current ones; the initial weights count for nothing."""
    share = (1.0 - averaging) / (1.0 - averaging**step)
    torch._foreach_lerp_(list(average.values()), [value.detach() for value in trained.values()], share)


def _copy(trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trained.items()}


@torch.no_grad()
def _put(trained: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in trained.items():
        value.copy_(values[name])
