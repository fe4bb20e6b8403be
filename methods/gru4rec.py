"""GRU4Rec: a gated recurrent network over item sequences (Hidasi et al., ICLR 2016, arXiv 1511.06939).

    genrec-bench run --method gru4rec --dataset ml-100k

Deviation: full softmax by default instead of the pairwise losses of the paper, and the improved form of Tan et al. 2016
(input dropout, no session-parallel batches); every position of a sequence is trained at once.
"""

from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, Rate
from genrec_bench.methods.dropout import dropout
from genrec_bench.methods.next_item import NextItemConfig, TrainedScorer, next_item_scores, train_next_item


class GRU4RecConfig(NextItemConfig):
    """Library sizes; the rest tuned on validation."""

    hidden: PositiveInt = 128  # width of the state
    layers: PositiveInt = 1
    dropout: Rate = 0.5
    learning_rate: PositiveFloat = 3e-3

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "dim": [64, 128],
        "hidden": [64, 128, 256],
        "dropout": [0.2, 0.3, 0.5, 0.6],
        "learning_rate": (1e-3, 1e-2),
        "weight_decay": [0.0, 0.01, 0.1, 0.3],
    }


class GRU4Rec(TrainedScorer):
    """Recurrent next-item recommendation."""

    Config = GRU4RecConfig
    published_as = "GRU4Rec"
    family = "sequential"

    def fit(self, train: TrainView, context: Context) -> None:
        self._build(train, context)
        train_next_item(self.model, self, train, self.config, context)

    def score(self, histories: Histories) -> Tensor:
        return next_item_scores(self.model, histories, self.config.max_length)

    def _build(self, train: TrainView, context: Context) -> None:
        self.model = GRU4RecModel(train.num_items, self.config).to(context.device)


class GRU4RecModel(nn.Module):
    """Item embeddings, a GRU, a linear map back to the embedding width; output tied to the item embeddings."""

    def __init__(self, num_items: int, config: GRU4RecConfig):
        super().__init__()
        self.num_items = num_items
        self.dropout = config.dropout
        self.items = nn.Embedding(num_items + 1, config.dim, padding_idx=num_items)
        self.gru = nn.GRU(config.dim, config.hidden, config.layers, batch_first=True)
        self.out = nn.Linear(config.hidden, config.dim)
        nn.init.normal_(self.items.weight, std=0.02)
        for name, weight in self.gru.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.zeros_(weight)

    def forward(self, items: Tensor) -> Tensor:
        """(B, L) right-padded item numbers -> hidden states (B, L, dim)."""
        embedded = dropout(self.items(items), self.dropout, self.training)
        states, _ = self.gru(embedded)
        hidden: Tensor = self.out(dropout(states, self.dropout, self.training))
        return hidden

    def item_table(self) -> Tensor:
        """(num_items, dim), without the padding row."""
        return self.items.weight[: self.num_items]
