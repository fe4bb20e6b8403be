"""MoRec: SASRec on item vectors made of the items' titles, not of ids (Yuan et al., SIGIR 2023, arXiv 2303.13835).

    genrec-bench run --method morec --dataset ml-100k

An item's vector is W t + b, where t is the vector that a pretrained text encoder gives its title; sequences are read as
by SASRec, and scores are inner products with the same item vectors. No item has numbers of its own: one that nobody
touched in training is as good as its title, and those with equal titles differ by rounding alone.

Deviation: the encoder is frozen, its vectors are kept (`genrec_bench.methods.encoders.text`), centred, and pooled as
the source says; the paper tunes BERT end to end and takes the state of its [CLS] token. So printed figures are of
another model, whatever the source, and our tables say that beside them.
Deviation: full softmax by default; the paper has binary cross-entropy (``loss=bce``), its repository later a softmax
over the batch's items, corrected for popularity. Kept texts make vectors of all items cheap: one product a step.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.base import Content, Context, Rate
from genrec_bench.methods.encoders import text
from genrec_bench.methods.language.sources import folder_content
from genrec_bench.methods.next_item import load_weights
from genrec_bench.methods.sasrec import SASRec, SASRecConfig, SASRecModel


class MoRecConfig(SASRecConfig):
    """SASRec's sizes, and what an item's vector is made of; the rest tuned on validation of MovieLens-100K."""

    dropout: Rate = 0.2
    hidden_dropout: Rate = 0.2
    learning_rate: PositiveFloat = 3e-3
    # minilm, tfidf_svd, backbone, hub id or folder. Validation of MovieLens-100K: NDCG@10 is .028 after 28 epochs
    # on the words of titles (tfidf_svd, more dropout, a third of the rate), .048 after 7 on minilm's vectors
    source: Annotated[str, Content(folder_content)] = "minilm"
    text: Literal["title", "all"] = "title"  # of an item; all: title, categories and description

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        **SASRecConfig.search_space,
        "source": ["minilm", "tfidf_svd"],
    }


class MoRec(SASRec):
    """Modality-based sequential recommendation."""

    Config = MoRecConfig
    published_as = "MoRec"

    def save(self, folder: Path) -> None:
        super().save(folder)
        # an encoder may be gone by the time of loading, and differs between machines in the last digits
        np.save(folder / "text_vectors.npy", self.model.items.texts[:-1].cpu().numpy())

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        self._assemble(np.load(folder / "text_vectors.npy"), context)
        load_weights(self.model, folder)

    def _build(self, train: TrainView, context: Context) -> None:
        self._assemble(centred(title_vectors(train, self.config, context)), context)

    def _assemble(self, texts: np.ndarray, context: Context) -> None:
        items = ProjectedTexts(texts, self.config.dim)
        self.model = SASRecModel(len(texts), self.config, items).to(context.device)


class ProjectedTexts(nn.Module):
    """Learned projection of fixed text vectors (N, h), in the place of SASRec's table; padding is the text zero.

    The texts are no part of the saved weights: a step would average them, an epoch copy them.
    """

    texts: Tensor

    def __init__(self, texts: np.ndarray, dim: int):
        super().__init__()
        padded = np.concatenate([texts, np.zeros_like(texts[:1])])
        self.register_buffer("texts", torch.from_numpy(padded), persistent=False)  # (N + 1, h)
        self.project = nn.Linear(texts.shape[1], dim)

    def forward(self, items: Tensor) -> Tensor:
        """(B, L) item numbers -> (B, L, dim)"""
        projected: Tensor = self.project(self.texts[items])
        return projected

    @property
    def weight(self) -> Tensor:
        """(N + 1, dim), as an embedding's."""
        projected: Tensor = self.project(self.texts)
        return projected


def title_vectors(train: TrainView, config: MoRecConfig, context: Context) -> np.ndarray:
    """Vectors of the texts that ``config.text`` names, (N, h) float32; InputError where most items have none."""
    items, missing, instead = train.items, "title, category or description", ""
    if config.text == "title":
        items = items.assign(categories="", description="")
        missing, instead = "title", "text=all, which reads categories and descriptions too; "
    empty = sum(not words for words in text.item_texts(items))
    if empty > text.MAX_EMPTY_SHARE * len(items):
        raise InputError(
            f"morec: {empty} of {len(items)} items have no {missing}: vectors made of texts need a data set where at "
            f"least half of the items have one. What would work: {instead}a data set with titles; sasrec, without texts"
        )
    return text.text_vectors(items, config.source, context)


def centred(texts: np.ndarray) -> np.ndarray:
    """``texts`` (N, h) with mean zero and an average length of one: what all titles share tells none apart."""
    apart = texts - texts.mean(0)
    return np.asarray(apart / max(np.linalg.norm(apart, axis=1).mean(), 1e-12), dtype=np.float32)
