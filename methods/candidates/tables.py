"""The item table that a projector reads: a recommender's own, learned from training interactions, or a file.

Deviation: the recommender learns from histories of up to 50 items (Caser: 5), its own setting; prompts show 10, and
LLaRA's recommenders were trained on those.
"""

import hashlib
from contextlib import suppress
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.base import Context, FileName
from genrec_bench.methods.candidates.inputs import read_table
from genrec_bench.methods.candidates.language import TunedConfig
from genrec_bench.methods.encoders.behaviour import behaviour_vectors, with_cold_items


class EncoderConfig(TunedConfig):
    """Where item vectors come from: the item table of a recommender, not its states."""

    encoder: str = "sasrec"  # or any other that `genrec_bench.methods.encoders.behaviour` knows
    encoder_dim: PositiveInt = 64  # RSLLM section 5.1
    encoder_seed: int = Field(default=0, ge=0)  # one table for all seeds of the method
    encoder_settings: dict[str, Any] = Field(default_factory=dict)  # of the recommender: epochs, dropout, ...
    table: FileName = None  # a .npy file (N, d) instead

    def contents(self) -> dict[str, str]:
        inner: dict[str, str] = {}
        if self.encoder_settings and self.encoder in registry.names():
            with suppress(InputError):  # what does not fit, `fit` refuses
                settings = {"dim": self.encoder_dim, **self.encoder_settings}
                inner = registry.configure(self.encoder, settings).contents()
        return super().contents() | {f"encoder_settings.{key}": content for key, content in inner.items()}


def encoder_table(config: EncoderConfig, train: TrainView, context: Context) -> np.ndarray:
    """Vectors (N, d) float32 of all items; those that nobody took in training get the mean of the others."""
    if config.table is not None:
        found = read_table(config.table, train.num_items)
    else:
        found = behaviour_vectors(
            train, context, config.encoder, config.encoder_dim, config.encoder_seed, config.encoder_settings
        )
        found = with_cold_items(found, train.item_counts() > 0, None)
    context.log(stage="item_table", shape=list(found.shape), sha256=hashlib.sha256(found.tobytes()).hexdigest())
    return found


PRINTED = {"gru4rec": "GRU4Rec", "caser": "Caser", "sasrec": "SASRec"}


def printed_encoder(config: EncoderConfig) -> str:
    """The variant of the printed tables with this encoder."""
    known = PRINTED.get(config.encoder) if config.table is None else None
    return f"encoder={known}" if known else "not printed"
