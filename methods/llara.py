"""LLaRA: titles and item vectors in one prompt, the vectors let in step by step (SIGIR 2024, arXiv 2312.02445).

    genrec-bench run --method llara --dataset ml-100k --protocol cand20 --set llara.encoder=gru4rec

An item is its title and one vector, projected from the item table of a recommender, which stays as it is. A step of
training shows vectors with a probability that grows from 0 to 1 (``curriculum=on``); a step without has [PH] in their
place, and moves no projector.

Deviation: the probability counts optimiser steps; the released code's counts a loader's, and each worker its own.
Deviation: vectors of items that nobody took in training are the mean of the others'.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.base import Context
from genrec_bench.methods.candidates.language import CandidateLanguageModel
from genrec_bench.methods.candidates.prompts import LLARA, LLARA_TEXT, Style
from genrec_bench.methods.candidates.tables import EncoderConfig, encoder_table, printed_encoder
from genrec_bench.methods.candidates.tuning import AnswerLoss

Curriculum = Literal["on", "hybrid_only", "text_only", "two_stage"]


class LLaRAConfig(EncoderConfig):
    """The curriculum."""

    curriculum: Curriculum = "on"  # two_stage: text in the first half of all steps, vectors in the second


class LLaRA(CandidateLanguageModel):
    """Hybrid prompts and a curriculum."""

    Config = LLaRAConfig
    published_as = "LLaRA"
    tuned = True

    @property
    def style(self) -> Style:  # type: ignore[override]
        return LLARA_TEXT if self.config.curriculum == "text_only" else LLARA

    def styles(self) -> Sequence[Style]:
        return (LLARA_TEXT,) if self.config.curriculum == "text_only" else (LLARA, LLARA_TEXT)

    def item_table(self, train: TrainView, context: Context) -> np.ndarray | None:
        return None if self.config.curriculum == "text_only" else encoder_table(self.config, train, context)

    def tune(self, train: TrainView, context: Context) -> None:
        loss = AnswerLoss(self.model, history=self.config.history_loss)
        curriculum = self.config.curriculum

        def style_at(share: float) -> Callable[[np.random.Generator], Style]:
            return lambda rng: LLARA if rng.random() < vector_share(curriculum, share) else LLARA_TEXT

        self.train_stage(train, context, loss, self.config, style_at)

    def published_variant(self) -> str | None:
        return printed_encoder(self.config) if self.config.curriculum == "on" else "not printed"


def vector_share(curriculum: Curriculum, share: float) -> float:
    """Probability that a step shows vectors, once ``share`` of all steps is done."""
    return {"on": share, "hybrid_only": 1.0, "text_only": 0.0, "two_stage": float(share >= 0.5)}[curriculum]
