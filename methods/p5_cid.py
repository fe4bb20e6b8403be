"""P5-CID: T5 over collaborative item indices (Hua et al., SIGIR-AP 2023, arXiv 2305.06569).

    genrec-bench run --method p5_cid --dataset ml-100k

Items that are taken together share leading tokens (`genrec_bench.methods.indexing.collaborative`). Codes vary in
length, so each ends with an end token where it is shorter than the longest.

Tiers base and paper fine-tune a pre-trained T5, whose prompt is the paper's user number and history in words (sequence
task).
Deviation: tier tiny is a T5, or with ``architecture=decoder_only`` a Llama, from scratch that reads codes after a user
token: to a model without pre-training the prompt's constant words say nothing.
Deviation: the loss is over the codes of a level; ``loss_over=vocabulary`` is the official one.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field, NonNegativeInt

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, ModelName
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.language.backbone import load_backbone
from genrec_bench.methods.language.codes import ItemTokens
from genrec_bench.methods.language.sequences import TokenSequences, join
from genrec_bench.methods.language.vocabulary import add_code_tokens
from genrec_bench.methods.tiger import Tiger, TigerConfig

PRETRAINED = "google-t5/t5-small"
BEFORE, AFTER = "User {user} has taken, oldest first:", "Next item:"


class P5CIDConfig(TigerConfig):
    """As `TigerConfig`, but for the index, the user tokens and the pre-trained model."""

    index: IndexConfig = Field(default_factory=lambda: IndexConfig(builder="collaborative"))
    user_buckets: NonNegativeInt = 2000  # of tier tiny
    backbone: ModelName = None  # None: from scratch at tier tiny, T5-small at the others; else a hub id or folder


class P5CID(Tiger):
    """Collaborative indexing for the P5 family."""

    Config = P5CIDConfig
    published_as = "P5-CID"

    def make_model(self, train: TrainView, context: Context) -> None:
        name = self.config.backbone or (None if context.scale == "tiny" else PRETRAINED)
        self.tokenizer = None
        if name is None:
            super().make_model(train, context)
            return
        if self.config.architecture == "decoder_only":
            raise InputError("p5_cid: architecture=decoder_only is for tier tiny; a pre-trained T5 has an encoder")
        backbone = load_backbone(name, kind="seq2seq", device=context.device, seed=context.seed)
        by_level = add_code_tokens(backbone, self.index, seed=context.seed)
        self.architecture, self.model, self.tokenizer = "seq2seq", backbone.model, backbone.tokenizer
        self.items = ItemTokens.of(self.index, by_level, backbone.tokenizer.eos_token_id)
        self.pad = backbone.tokenizer.pad_token_id

    def prompts(self, histories: Histories) -> TokenSequences:
        if self.tokenizer is None:
            return super().prompts(histories)
        users, row = np.unique(histories.users, return_inverse=True)
        before = self._encoded([BEFORE.format(user=user) for user in users]).select(row)
        after = self._encoded([AFTER]).repeated(len(histories))
        separator = self._encoded([", "])
        return join(before, self.items.histories(histories, separator=separator), after)

    def _encoded(self, texts: Sequence[str]) -> TokenSequences:
        assert self.tokenizer is not None
        return TokenSequences.of(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])
