"""SASRec: a causal transformer over item sequences (Kang and McAuley, ICDM 2018, arXiv 1808.09781).

    genrec-bench run --method sasrec --dataset ml-100k

Deviation: post-norm blocks with GELU and tied output, as RecBole's version, and full softmax by default. The original's
binary loss with one negative (``loss=bce``) is the version most papers print and is far weaker.
Deviation: trained on every position of a sequence at once (`genrec_bench.methods.next_item`).
"""

from typing import Any, ClassVar

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, Rate
from genrec_bench.methods.dropout import dropout
from genrec_bench.methods.next_item import NextItemConfig, TrainedScorer, next_item_scores, train_next_item


class SASRecConfig(NextItemConfig):
    """Sizes most comparisons use; the rest tuned on validation (suites/ has the tuned values of each data set)."""

    blocks: PositiveInt = 2
    heads: PositiveInt = 2
    feedforward: PositiveInt = 256
    averaging: Rate = 0.998  # of the weights, a step; steadies the choice of an epoch
    hidden_dropout: Rate = 0.5  # inside the blocks: attention weights and both residual branches

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "dim": [64, 128],
        "dropout": [0.2, 0.3, 0.5, 0.6],
        "hidden_dropout": [0.1, 0.2, 0.3, 0.5],
        "learning_rate": (3e-4, 3e-3),
        "weight_decay": [0.0, 0.01, 0.1, 0.3],
        "blocks": [1, 2, 3],
    }

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "SASRecConfig":
        if self.dim % self.heads:
            raise ValueError(f"heads={self.heads} must divide dim={self.dim}")
        return self


class SASRec(TrainedScorer):
    """Self-attentive sequential recommendation."""

    Config = SASRecConfig
    published_as = "SASRec"
    family = "sequential"

    def fit(self, train: TrainView, context: Context) -> None:
        self._build(train, context)
        train_next_item(self.model, self, train, self.config, context, self.config.averaging)

    def score(self, histories: Histories) -> Tensor:
        return next_item_scores(self.model, histories, self.config.max_length)

    def _build(self, train: TrainView, context: Context) -> None:
        self.model = SASRecModel(train.num_items, self.config).to(context.device)


class SASRecModel(nn.Module):
    """Item and position embeddings, ``blocks`` causal attention blocks, output tied to the item embeddings.

    ``items`` is a module that may stand for the table of item embeddings: called with item numbers it gives their
    vectors, and its ``weight`` is those of all, the last row being padding's.
    """

    def __init__(self, num_items: int, config: SASRecConfig, items: nn.Module | None = None):
        super().__init__()
        self.num_items = num_items
        self.dropout = config.dropout
        self.items = nn.Embedding(num_items + 1, config.dim, padding_idx=num_items) if items is None else items
        self.positions = nn.Embedding(config.max_length, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.apply(_initialise)

    def forward(self, items: Tensor) -> Tensor:
        """(B, L) right-padded item numbers -> hidden states (B, L, dim)."""
        length = (items != self.num_items).sum(1, keepdim=True)
        # counted from the most recent item, as in the left-padded original: position 0 is what a prediction stands on
        steps_back = (length - 1 - torch.arange(items.shape[1], device=items.device)).clamp_min(0)  # (B, L)
        hidden = self.norm(self.items(items) + self.positions(steps_back))
        hidden = dropout(hidden, self.dropout, self.training)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def item_table(self) -> Tensor:
        """(num_items, dim), without the padding row."""
        weight: Tensor = self.items.weight  # type: ignore[assignment]
        return weight[: self.num_items]


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each with dropout, residual and layer norm after."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        self.heads, self.dropout = config.heads, config.hidden_dropout
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.attended = nn.Linear(config.dim, config.dim)
        self.expand = nn.Linear(config.dim, config.feedforward)
        self.contract = nn.Linear(config.feedforward, config.dim)
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L, dim)"""
        rows, length, dim = hidden.shape
        qkv = self.query_key_value(hidden).view(rows, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, dim / heads)
        mixed = self._attend(query, key, value).transpose(1, 2).reshape(rows, length, dim)
        hidden = self.attention_norm(hidden + dropout(self.attended(mixed), self.dropout, self.training))
        wide = self.contract(functional.gelu(self.expand(hidden)))
        normed: Tensor = self.feedforward_norm(hidden + dropout(wide, self.dropout, self.training))
        return normed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention with dropout on its weights; (B, heads, L, dim / heads) each."""
        if query.is_cuda or not self.training:
            p = self.dropout if self.training else 0.0
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=p)
        # torch's fused CPU kernel has no dropout and falls back to a slow one
        length = query.shape[2]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        weights = weights.masked_fill(future, float("-inf")).softmax(3)
        return dropout(weights, self.dropout, training=True) @ value


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
