"""Further pretraining: the training sequences, read as lists of titles, before anything is asked about them.

Source: Gururangan et al. 2020 (arXiv 2004.10964). No paper of the candidate protocol does so, and it is off by default.
A question teaches little beside the one title that it asks for; a list teaches a title in every line. What is learned
is what a recommender learns from the same sequences: which items are taken at all, and after which others.

LoRA adapters learn it and are merged into the weights, so that a method's own training begins from a model like any
other. It is learned once, whatever the method and its seed: `ArtefactCache`.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.base import Context, Method, MethodConfig, Rate
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.decoding.causal import CausalTokens
from genrec_bench.methods.language.adapters import LoraSettings, adapt, merge
from genrec_bench.methods.language.backbone import Backbone
from genrec_bench.methods.language.batches import Packed, packed_batches
from genrec_bench.methods.language.codes import packed_states
from genrec_bench.methods.language.sequences import TEXT, TokenSequences
from genrec_bench.methods.language.training import TrainingConfig, TrainingDiverged, train_language_model
from genrec_bench.methods.seeding import seeded

VERSION = 1  # raise it when the same model, titles, sequences and settings give other weights


class AdaptationSettings(MethodConfig):
    """Of a pretrained model; tier tiny's has nothing to go on with. In bf16 where that is fast."""

    epochs: NonNegativeInt = 0  # passes over the training sequences; 0: none
    positions: PositiveInt = 512  # tokens of a list; a sequence is cut into as many as it fills
    batch: PositiveInt = 2  # rows of that many tokens a step
    learning_rate: PositiveFloat = 1e-3
    averaging: Rate = 0.98  # of the weights, a step; 0 keeps the last ones
    seed: NonNegativeInt = 0  # not the method's: one model for all of them
    lora: LoraSettings = Field(default_factory=LoraSettings)


def adaptation(
    backbone: Backbone,
    lines: Sequence[Sequence[int]],
    train: TrainView,
    settings: AdaptationSettings,
    context: Context,
    method: Method,
) -> dict[str, Tensor]:
    """Adapters' weights by name, on the CPU; ``backbone`` itself is as before.

    ``lines`` (N,) are the items' titles in tokens, each with the end of its line. A killed run goes on where it stood.
    """
    from safetensors.torch import load_file, save_file

    key = {
        "version": VERSION,
        "model": backbone.identity,
        "lines": canonical_hash([list(line) for line in lines]),
        "sequences": hashlib.sha256(train.sequences.items.tobytes() + train.sequences.offsets.tobytes()).hexdigest(),
        "settings": settings.model_dump(mode="json"),
    }

    def build(folder: Path) -> None:
        # beside the unfinished artefact, under its key: the next attempt finds it
        training = context.artefacts.root / "adaptation_training" / canonical_hash(key)[:24]
        with seeded(settings.seed):
            adapt(backbone, settings.lora)
            checkpoint = Checkpoint(training)
            _learn(backbone, lines, train.sequences, settings, replace(context, checkpoint=checkpoint), method)
            context.artefacts.spared_s += checkpoint.earlier_s  # it cost that, too, though not this attempt
            learned = {name: value.detach().cpu().contiguous() for name, value in _adapters(backbone).items()}
            save_file(learned, str(folder / "adapters.safetensors"))
            backbone.model = backbone.model.unload().requires_grad_(True)
        shutil.rmtree(training, ignore_errors=True)

    return load_file(str(context.artefacts.get("adaptation", key, build) / "adapters.safetensors"))


def put(backbone: Backbone, learned: dict[str, Tensor], settings: AdaptationSettings) -> None:
    """Merge what `adaptation` gave into the model's weights. Raises InputError where it is another model's."""
    with seeded(settings.seed), torch.no_grad():
        adapt(backbone, settings.lora)
        own = _adapters(backbone)
        if own.keys() != learned.keys():
            odd = sorted(own.keys() ^ learned.keys())[0]
            raise InputError(f"An adaptation of another model: {odd} is in one of them only")
        for name, value in own.items():
            value.copy_(learned[name])
        merge(backbone)
    backbone.model.requires_grad_(True)


def _adapters(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value for name, value in backbone.model.named_parameters() if value.requires_grad}


def _learn(
    backbone: Backbone,
    lines: Sequence[Sequence[int]],
    sequences: Histories,
    settings: AdaptationSettings,
    context: Context,
    method: Method,
) -> None:
    width = max(settings.positions, max(map(len, lines)) + 1)
    pad = backbone.tokenizer.pad_token_id or 0

    def batches(rng: np.random.Generator) -> Iterator[Packed]:
        lists = TokenSequences.of(written_out(lines, sequences, width, rng), TEXT)
        yield from packed_batches(lists, width, settings.batch * width, pad, rng)

    def loss_of(batch: Packed) -> Tensor:
        logits = CausalTokens(backbone.model).logits(packed_states(backbone.model, batch)[batch.at], None)
        return functional.cross_entropy(logits.float(), batch.targets, reduction="sum")

    def log(**values: Any) -> None:
        shown = {name: values[name] for name in ("epoch", "loss", "train_s", "note") if name in values}
        context.log(**(shown | {"stage": "adaptation"}))

    config = TrainingConfig(
        learning_rate=settings.learning_rate, averaging=settings.averaging, epochs=settings.epochs,
        validate_every=settings.epochs, warmup=0.05,
    )  # fmt: skip
    # nothing held out has a say: the last weights are kept
    own = replace(context, seed=settings.seed, validate=lambda method, users=0: 0.0, log=log)
    try:
        train_language_model(backbone.model, method, batches, loss_of, config, own)
    except TrainingDiverged as error:
        raise TrainingDiverged(f"adaptation: {error} (adaptation.learning_rate)") from None


def written_out(
    lines: Sequence[Sequence[int]], sequences: Histories, room: int, rng: np.random.Generator
) -> list[list[int]]:
    """All sequences as lists of at most ``room`` tokens, in order; a title is never parted.

    The first list of a sequence is cut at a random place, so that the next epoch cuts elsewhere. Its first token, the
    end of the last line of another, is read alone: the first title is learned, too.
    """
    end = lines[0][-1]
    found: list[list[int]] = []
    for row in range(len(sequences)):
        text, limit = [end], int(rng.integers(room // 2, room + 1))
        for item in sequences.row(row).tolist():
            if len(text) > 1 and len(text) + len(lines[item]) > limit:
                found.append(text)
                text, limit = [end], room
            text.extend(lines[item])
        found.append(text)
    return found
