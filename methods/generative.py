"""What all generative recommenders share: an item index, its trie, a language model, decoding of real items only."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, Method, Ranking, Rate, Resources, Scale
from genrec_bench.methods.decoding.beam import Hook
from genrec_bench.methods.decoding.ranking import decode_each
from genrec_bench.methods.decoding.tokens import Normalise
from genrec_bench.methods.decoding.trie import ItemTrie
from genrec_bench.methods.indexing.build import build_index
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.index import ItemIndex
from genrec_bench.methods.language.codes import CodeLoss, Contrast, ItemTokens, LossOver
from genrec_bench.methods.language.sequences import TokenSequences
from genrec_bench.methods.language.training import TrainingConfig
from genrec_bench.methods.next_item import count_parameters, load_weights, save_weights


class GenerativeConfig(TrainingConfig):
    """Item index, loss over codes, decoding."""

    index: IndexConfig = Field(default_factory=IndexConfig)
    max_history: PositiveInt = 20  # most recent items a prompt holds (all papers of this family)
    window: PositiveInt | None = None  # items of a training sequence; longer ones are cut; None: max_history
    thinning: Rate = 0.0  # examples=sequence: highest share of a sequence's items left out, at random, each epoch
    loss_over: LossOver = "level"  # what a code competes with: the trie's continuations, its level, the vocabulary
    temperature: PositiveFloat = 1.0  # of the loss; LETTER tunes it
    normalise: Normalise | None = None  # of decoding; None: over what the loss was
    beam: PositiveInt = 20  # beams, and items returned (all papers of this family)
    decode_tokens: PositiveInt = 16_384  # positions of prompts and beams decoded at a time

    @field_validator("index", mode="before")
    @classmethod
    def _keep_the_methods_index(cls, value: Any) -> Any:
        """Settings of the same builder are changes to the method's own index, not a new one."""
        own = cls.model_fields["index"].get_default(call_default_factory=True)
        if not isinstance(value, dict) or value.get("builder", own.builder) != own.builder:
            return value
        return {**own.model_dump(exclude_unset=True), **value}


class Generative(Method):
    """A recommender that writes item codes. Subclasses give a vocabulary, a model, prompts and a training."""

    family = "generative"
    parallel = True
    architecture: Literal["causal", "seq2seq"]
    model: Any
    items: ItemTokens  # codes in vocabulary ids

    @classmethod
    def resources(cls, config: Any, scale: Scale) -> Resources:
        return Resources(gpus=0.25 if scale == "tiny" else 1.0)

    @abstractmethod
    def make_model(self, train: TrainView, context: Context) -> None:
        """Set ``model`` (on the context's device), ``items`` and ``architecture``; seeded by the context."""

    @abstractmethod
    def train(self, train: TrainView, context: Context) -> None:
        """Train ``model``."""

    @abstractmethod
    def prompts(self, histories: Histories) -> TokenSequences:
        """What the model reads before it writes the next item's code; never empty."""

    def fit(self, train: TrainView, context: Context) -> None:
        index = build_index(train, context, self.index_config(context), checkpoint=context.checkpoint.beside("index"))
        self._build(index, train, context)
        self.train(train, context)

    def recommend(self, histories: Histories, k: int) -> Ranking:
        return self.search(histories, k, [None])[0]

    def search(
        self,
        histories: Histories,
        k: int,
        hooks: Sequence[Hook | None],
        *,
        normalise: Normalise | None = None,
    ) -> list[Ranking]:
        """The answer under each score hook, all searched side by side; ``normalise`` in place of the method's own."""
        prompts = self.prompts(histories.last(self.config.max_history))
        found = decode_each(
            self.token_model()(self.model),
            prompts.offsets,
            prompts.tokens,
            self.trie,
            self.items.by_level,
            k,
            hooks,
            width=self.config.beam,
            end_id=self.items.end_id,
            token_budget=self.config.decode_tokens,
            normalise=normalise or self.config.normalise or self.config.loss_over,
            exclude=histories if histories.mask_seen else None,
        )
        return [Ranking(items, scores, ordered=True) for items, scores in found]

    def index_config(self, context: Context) -> IndexConfig:
        """The config of the item index."""
        config: IndexConfig = self.config.index
        return config

    def save(self, folder: Path) -> None:
        (folder / "index").mkdir()
        self.index.save(folder / "index")
        self.save_model(folder)

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        self._build(ItemIndex.load(folder / "index"), train, context)
        self.load_model(folder)

    def save_model(self, folder: Path) -> None:
        """Write the model's weights."""
        save_weights(self.model, folder)

    def load_model(self, folder: Path) -> None:
        """Read them into the model that `make_model` made."""
        load_weights(self.model, folder)

    def code(self, item: int) -> list[str] | None:
        return self.index.strings(item)

    def item_vectors(self) -> dict[str, np.ndarray]:
        """The mean of the input embeddings of each item's code tokens."""
        table = self.model.get_input_embeddings().weight.detach().float().cpu().numpy()
        ids = self.items.ids
        real = (ids >= 0)[..., None]
        return {"items": (table[np.maximum(ids, 0)] * real).sum(1) / real.sum(1)}

    def parameters(self) -> tuple[int, int]:
        return count_parameters(self.model)

    def token_model(self) -> type:
        """The decoding adapter of the model's architecture."""
        if self.architecture == "causal":
            from genrec_bench.methods.decoding.causal import CausalTokens

            return CausalTokens
        from genrec_bench.methods.decoding.seq2seq import Seq2SeqTokens

        return Seq2SeqTokens

    def loss(self, contrast: Contrast | None = None) -> CodeLoss:
        """The loss over a batch's targets that the config asks for, and over its asides."""
        over, temperature = self.config.loss_over, self.config.temperature
        return CodeLoss(self.model, self.token_model(), self.trie, self.items, over, temperature, contrast)

    def _build(self, index: ItemIndex, train: TrainView, context: Context) -> None:
        self.index = index
        self.trie = ItemTrie.from_index(index, order=-train.item_counts()).to(context.device)  # popular items first
        self.make_model(train, context)
