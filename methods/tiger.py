"""TIGER: a transformer that writes the semantic ID of the next item (Rajput et al., NeurIPS 2023, arXiv 2305.05065).

    genrec-bench run --method tiger --dataset ml-100k

``architecture=encoder_decoder`` is the paper's: a small T5, one training example a prefix. ``decoder_only`` is a Llama
of the same depth and width that, with ``examples=sequence``, learns from every item of a user's sequence in one pass.

Deviation: AdamW with a cosine schedule and early stopping on validation, not 200,000 steps of inverse square root.
Deviation: decoding is constrained to real items, so no recommendation is invalid; the paper's is not.
Deviation: the loss is over the codes of a level; ``loss_over=vocabulary`` is the usual one.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context
from genrec_bench.methods.generative import Generative, GenerativeConfig
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.language.adapters import switch_on_checkpointing
from genrec_bench.methods.language.batches import packed_batches, padded_batches, pair_batches
from genrec_bench.methods.language.codes import ItemTokens, training_prefixes, training_windows
from genrec_bench.methods.language.sequences import TokenSequences, join
from genrec_bench.methods.language.training import Batch, add_dropout, train_language_model

PAD, START, END, CODES = 0, 1, 2, 3  # vocabulary: three special tokens, then the codes, then user buckets


class TigerConfig(GenerativeConfig):
    """Sizes of the paper (section 4); suites/ has values of a data set that were chosen on validation."""

    architecture: Literal["encoder_decoder", "decoder_only"] = "encoder_decoder"  # T5, or a decoder alone
    index: IndexConfig = Field(default_factory=lambda: IndexConfig(builder="rqvae", levels=3, collisions="counter"))
    examples: Literal["sequence", "prefix", "padded_prefix"] = "sequence"  # decoder_only: what one example is
    layers: PositiveInt = 4  # of the encoder and of the decoder, each
    width: PositiveInt = 128
    heads: PositiveInt | None = None  # None: 6 of 64 numbers (the paper), or width / 32 in the decoder-only variant
    feedforward: PositiveInt | None = None  # None: 1024 (the paper), or 4 x width in the decoder-only variant
    tied: bool = True  # decoder_only: one matrix reads and writes codes
    user_buckets: NonNegativeInt = 0  # hashed user tokens, the prompt's first token; 2000 in the paper
    rows: PositiveInt = 256  # encoder_decoder: examples a step

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "learning_rate": (3e-4, 3e-3),
        "dropout": [0.1, 0.2, 0.3, 0.4],
        "weight_decay": [0.01, 0.05, 0.1],
        "batch_tokens": [2048, 4096, 8192],
        "layers": [2, 4, 6],
        "thinning": [0.0, 0.3, 0.5],
    }

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TigerConfig":
        if self.architecture == "decoder_only" and self.heads and self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return self


class Tiger(Generative):
    """Generative retrieval with semantic IDs."""

    Config = TigerConfig
    published_as = "TIGER"
    pad = PAD

    def make_model(self, train: TrainView, context: Context) -> None:
        from genrec_bench.methods.language.backbone import tiny_llama, tiny_t5

        config = self.config
        by_level = [torch.from_numpy(CODES + numbers) for numbers in self.index.token_numbers]
        self.items = ItemTokens.of(self.index, by_level, END)
        self.first_bucket = CODES + len(self.index.vocabulary)
        vocabulary = self.first_bucket + config.user_buckets
        if config.architecture == "decoder_only":
            self.architecture = "causal"
            self.model = tiny_llama(
                vocabulary,
                layers=config.layers,
                dim=config.width,
                heads=config.heads or max(config.width // 32, 1),
                feedforward=config.feedforward or 4 * config.width,
                positions=2 * self._positions(),
                tie=config.tied,
                seed=context.seed,
            )
            add_dropout(self.model, config.dropout)
        else:
            self.architecture = "seq2seq"
            self.model = tiny_t5(
                vocabulary,
                layers=config.layers,
                dim=config.width,
                heads=config.heads or 6,
                feedforward=config.feedforward or 1024,
                dropout=config.dropout,
                seed=context.seed,
            )
        self.model.to(context.device)

    def train(self, train: TrainView, context: Context) -> None:
        if self.config.gradient_checkpointing:
            switch_on_checkpointing(self.model)
        train_language_model(
            self.model, self, lambda rng: self._batches(train.sequences, rng), self.loss(), self.config, context
        )

    def prompts(self, histories: Histories) -> TokenSequences:
        return join(self._first(histories.users), self.items.histories(histories))

    def _first(self, users: np.ndarray) -> TokenSequences:
        """The token before each user's items."""
        if not self.config.user_buckets:
            return TokenSequences.of([[START]]).repeated(len(users))
        buckets = TokenSequences.of([[self.first_bucket + number] for number in range(self.config.user_buckets)])
        return buckets.select(users * 2_654_435_761 % 2**32 % self.config.user_buckets)  # Knuth's hash

    def _positions(self) -> int:
        """Tokens of the longest training sequence."""
        return (max(self.config.window or 0, self.config.max_history) + 1) * self.index.num_levels + 1

    def _batches(self, sequences: Histories, rng: np.random.Generator) -> Iterator[Batch]:
        config = self.config
        if self.architecture == "causal" and config.examples == "sequence":
            rows = training_windows(sequences, config.window or config.max_history, rng, config.thinning)
            examples = join(self._first(rows.users), self.items.histories(rows, learn=True))
            yield from packed_batches(examples, self._positions(), config.batch_tokens, self.pad, rng)
            return
        rows = training_prefixes(sequences, config.max_history)
        prompts = self.prompts(rows.without_last(1))
        targets = self.items.learned.select(rows.last(1).items)
        if self.architecture == "seq2seq":
            start = self.model.config.decoder_start_token_id
            yield from pair_batches(prompts, targets, start, config.rows, self.pad, rng)
        elif config.examples == "prefix":
            yield from packed_batches(join(prompts, targets), self._positions(), config.batch_tokens, self.pad, rng)
        else:
            yield from padded_batches(join(prompts, targets), config.batch_tokens, self.pad, rng)
