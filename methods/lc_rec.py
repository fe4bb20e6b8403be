"""LC-Rec: a language model that learns item codes and the text behind them (Zheng et al., ICDE 2024, arXiv 2311.09049).

    genrec-bench run --method lc_rec --dataset ml-100k
    genrec-bench run --method lc_rec --dataset ml-100k --scale base --set lc_rec.learning_rate=5e-4

Tier tiny is a small Llama with a vocabulary of the catalogue's words, base SmolLM2-135M, paper LLaMA-7B. LETTER and
AGRec ran LC-Rec on the sequence task alone, ``tasks=[sequence]``: a weaker, different method.

Deviation: queries and preference texts come from the items' own text, not from GPT-3.5
(`genrec_bench.methods.language.examples`).
Deviation: ``examples=sequence`` learns all items of a history in one pass; ``prefix``, one example a prefix, is the
paper's.
Deviation: decoding follows the trie of real codes; the official code allows any code of a level at its position, so it
can name items that do not exist.
Deviation: the loss on a code token is over the codes of its level; ``loss_over=vocabulary`` is the official one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context
from genrec_bench.methods.generative import Generative, GenerativeConfig
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.language.adapters import LoraSettings, adapt, load_adapter, save_adapter
from genrec_bench.methods.language.backbone import load_backbone
from genrec_bench.methods.language.batches import packed_batches
from genrec_bench.methods.language.codes import ItemTokens
from genrec_bench.methods.language.examples import ExampleWriter, Task
from genrec_bench.methods.language.sequences import TokenSequences
from genrec_bench.methods.language.training import Batch, add_dropout, train_language_model
from genrec_bench.methods.language.vocabulary import add_code_tokens

BACKBONES = {"tiny": "tiny", "base": "base", "paper": "huggyllama/llama-7b"}
ALL_TASKS: tuple[Task, ...] = ("sequence", "item_to_code", "code_to_item", "fusion", "search", "preference")


class LCRecConfig(GenerativeConfig):
    """Sizes are those of tier tiny; the other tiers' models have their own."""

    backbone: str | None = None  # None: the tier's; else a hub id or folder of a causal language model
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ALL_TASKS
    examples: Literal["sequence", "prefix"] = "sequence"
    lora: LoraSettings | None = None  # None: all weights are trained
    index: IndexConfig = Field(default_factory=lambda: IndexConfig(builder="rqvae"))
    layers: PositiveInt = 4
    width: PositiveInt = 128
    heads: PositiveInt = 4
    feedforward: PositiveInt = 512
    tied: bool = True  # one matrix reads and writes tokens
    max_text: PositiveInt = 32  # tokens of an item's text
    text_examples: PositiveInt = (
        20_000  # of each text task, an epoch (the paper samples fusion: 20,000 for Instruments)
    )

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "learning_rate": (1e-4, 3e-3),
        "dropout": [0.1, 0.2, 0.3],
        "text_examples": [2_000, 5_000, 20_000],
        "thinning": [0.0, 0.3, 0.5],
    }


class LCRec(Generative):
    """Language and collaborative semantics in one model."""

    Config = LCRecConfig
    published_as = "LC-Rec"

    def make_model(self, train: TrainView, context: Context) -> None:
        config = self.config
        self._check_text(train)
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
        self.code_ids = add_code_tokens(self.backbone, self.index, seed=context.seed)
        tokenizer = self.backbone.tokenizer
        self.items = ItemTokens.of(self.index, self.code_ids, tokenizer.eos_token_id)
        self.writer = ExampleWriter(
            tokenizer,
            train.items,
            self.items,
            config.max_history,
            config.max_text,
            config.text_examples,
            config.window,
            config.thinning,
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

    def _batches(self, sequences: Histories, rng: np.random.Generator) -> Iterator[Batch]:
        open_end = self.config.examples == "sequence"
        examples = self.writer.epoch(sequences, self.config.tasks, open_end, rng)
        yield from packed_batches(examples, self._row_tokens(), self.config.batch_tokens, self.pad, rng)

    def _row_tokens(self) -> int:
        """Tokens of the longest training sequence with its item separators, and its wording."""
        item = self.index.num_levels + int(self.writer.separator.lengths[0])
        longest = max(self.config.window or 0, self.config.max_history)
        return (longest + 1) * item + int(self.writer.sequence.before.lengths.max()) + 1

    def _words(self, train: TrainView) -> list[str]:
        """Texts that tier tiny's vocabulary is made of: titles, categories, and our wordings."""
        from genrec_bench.methods.language import prompts

        wordings = [part for name, value in vars(prompts).items() if name.isupper() for pair in value for part in pair]
        # as often as a frequent word, or a cap on the vocabulary would drop them first
        return [*wordings * 100, *train.items["title"], *train.items["categories"].str.replace("|", " , ", regex=False)]

    def _check_text(self, train: TrainView) -> None:
        if set(self.config.tasks) - {"sequence"} and not (train.items["title"] != "").any():
            raise InputError(
                f"{self.published_as}: none of the {train.num_items} items has a title, which the text tasks need; "
                "run the sequence task alone: tasks=[sequence]"
            )
