"""What language models that are asked in words share (LC-Rec, EAGER-LLM): backbone, words, tasks, LoRA.

Tier tiny is a small Llama with a vocabulary of the catalogue's words, base SmolLM2-135M, paper LLaMA-7B.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, ModelName
from genrec_bench.methods.generative import Generative, GenerativeConfig
from genrec_bench.methods.language.adapters import LoraSettings, adapt, load_adapter, save_adapter
from genrec_bench.methods.language.backbone import load_backbone
from genrec_bench.methods.language.batches import packed_batches
from genrec_bench.methods.language.codes import ItemTokens
from genrec_bench.methods.language.examples import ExampleWriter, Task
from genrec_bench.methods.language.prompts import Wording
from genrec_bench.methods.language.sequences import TokenSequences
from genrec_bench.methods.language.training import Batch, add_dropout, train_language_model
from genrec_bench.methods.language.vocabulary import add_code_tokens

BACKBONES = {"tiny": "tiny", "base": "base", "paper": "huggyllama/llama-7b"}


class PromptedConfig(GenerativeConfig):
    """Sizes are those of tier tiny; the other tiers' models have their own."""

    backbone: ModelName = None  # None: the tier's; else a hub id or folder of a causal language model
    examples: Literal["sequence", "prefix"] = "sequence"  # all targets of a sequence in one example, or one each
    lora: LoraSettings | None = None  # None: all weights are trained
    layers: PositiveInt = 4  # of tier tiny
    width: PositiveInt = 128  # of tier tiny
    heads: PositiveInt = 4  # of tier tiny
    feedforward: PositiveInt = 512  # of tier tiny
    tied: bool = True  # one matrix reads and writes tokens
    max_text: PositiveInt = 32  # tokens of an item's text


class Prompted(Generative):
    """A recommender that asks a language model in words, and teaches it what its codes mean.

    ``wordings`` are those whose words tier tiny knows.
    """

    wordings: ClassVar[tuple[tuple[Wording, ...], ...]]
    open_sequence_wordings: ClassVar[tuple[Wording, ...]] = ()  # of ``examples=sequence``; see `ExampleWriter`

    @abstractmethod
    def mixture(self) -> Mapping[Task, int]:
        """The training tasks and how many examples of each an epoch has at most; the sequence task has all of its."""

    def make_model(self, train: TrainView, context: Context) -> None:
        config = self.config
        name = config.backbone or BACKBONES[context.scale]
        tiny = name == "tiny"
        sizes: dict[str, Any] = {}
        if tiny:
            sizes = {
                "texts": self._words(train),
                "layers": config.layers,
                "dim": config.width,
                "heads": config.heads,
                "feedforward": config.feedforward,
                "tie": config.tied,
            }
        self.architecture = "causal"
        self.backbone = load_backbone(name, kind="causal", device=context.device, seed=context.seed, **sizes)
        context.log(stage="backbone", **self.backbone.identity)
        self.code_ids = add_code_tokens(self.backbone, self.index, seed=context.seed)
        tokenizer = self.backbone.tokenizer
        self.items = ItemTokens.of(self.index, self.code_ids, tokenizer.eos_token_id)
        self.writer = ExampleWriter(
            tokenizer,
            train.items,
            self.items,
            config.max_history,
            config.max_text,
            config.window,
            config.thinning,
            self.open_sequence_wordings,
        )
        self.pad = tokenizer.pad_token_id
        if tiny:  # a pre-trained model is not disturbed
            add_dropout(self.backbone.model, config.dropout)

    @property
    def model(self) -> Any:  # type: ignore[override]
        """The backbone's model, with adapters where there are any."""
        return self.backbone.model

    def train(self, train: TrainView, context: Context) -> None:
        adapt(self.backbone, self.config.lora, self.code_ids, self.config.gradient_checkpointing)
        train_language_model(
            self.model, self, lambda rng: self._batches(train.sequences, rng), self.loss(), self.config, context
        )

    def prompts(self, histories: Histories) -> TokenSequences:
        return self.writer.prompt(histories, open_end=self.config.examples == "sequence")

    def save_model(self, folder: Path) -> None:
        if self.config.lora is None:
            super().save_model(folder)
        else:
            save_adapter(self.backbone, folder / "adapter")

    def load_model(self, folder: Path) -> None:
        if self.config.lora is None:
            super().load_model(folder)
        else:
            load_adapter(self.backbone, folder / "adapter")

    def _batches(self, sequences: Histories, rng: np.random.Generator, asides: bool = False) -> Iterator[Batch]:
        """An epoch; with ``asides``, each item that the sequence task learns is followed by one."""
        open_end = self.config.examples == "sequence"
        examples = self.writer.epoch(sequences, self.mixture(), open_end, rng, asides)
        yield from packed_batches(examples, self._row_tokens(asides), self.config.batch_tokens, self.pad, rng)

    def _row_tokens(self, asides: bool = False) -> int:
        """Tokens of the longest training sequence with its item separators, and its wording."""
        item = self.index.num_levels + int(self.writer.separator.lengths[0]) + asides
        longest = max(self.config.window or 0, self.config.max_history)
        return (longest + 1) * item + int(self.writer.sequence.before.lengths.max()) + 1

    @staticmethod
    def has_titles(train: TrainView) -> bool:
        """Whether any item has one, which all tasks beside the sequence need."""
        return bool((train.items["title"] != "").any())

    def _words(self, train: TrainView) -> list[str]:
        """Texts that tier tiny's vocabulary is made of: the items' own, and our wordings."""
        wordings = [part for task in self.wordings for pair in task for part in pair]
        categories = train.items["categories"].str.replace("|", " , ", regex=False)
        # as often as a frequent word, or a cap on the vocabulary would drop them first
        return [*wordings * 100, *train.items["title"], *categories, *train.items["description"]]
