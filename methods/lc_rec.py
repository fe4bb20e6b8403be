"""LC-Rec: a language model that learns item codes and the text behind them (Zheng et al., ICDE 2024, arXiv 2311.09049).

    genrec-bench run --method lc_rec --dataset ml-100k
    genrec-bench run --method lc_rec --dataset ml-100k --scale base --set lc_rec.learning_rate=5e-4

LETTER and AGRec ran LC-Rec on the sequence task alone, ``tasks=[sequence]``: a weaker, different method.

Deviation: queries and preference texts come from the items' own text, not from GPT-3.5
(`genrec_bench.methods.language.examples`).
Deviation: ``examples=sequence`` learns all items of a history in one pass; ``prefix``, one example a prefix, is the
paper's.
Deviation: decoding follows the trie of real codes; the official code allows any code of a level at its position, so it
can name items that do not exist.
Deviation: the loss on a code token is over the codes of its level; ``loss_over=vocabulary`` is the official one.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.base import Context
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.language import prompts
from genrec_bench.methods.language.examples import Task
from genrec_bench.methods.prompted import Prompted, PromptedConfig

ALL_TASKS: tuple[Task, ...] = ("sequence", "item_to_code", "code_to_item", "fusion", "search", "preference")


class LCRecConfig(PromptedConfig):
    """As `PromptedConfig`, with the index and the tasks of the paper."""

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ALL_TASKS  # taught together
    index: IndexConfig = Field(default_factory=lambda: IndexConfig(builder="rqvae"))
    # of each text task, an epoch (the paper samples fusion: 20,000 for Instruments)
    text_examples: PositiveInt = 20_000

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "learning_rate": (1e-4, 3e-3),
        "dropout": [0.1, 0.2, 0.3],
        "text_examples": [2_000, 5_000, 20_000],
        "thinning": [0.0, 0.3, 0.5],
    }


class LCRec(Prompted):
    """Language and collaborative semantics in one model."""

    Config = LCRecConfig
    published_as = "LC-Rec"
    wordings = prompts.OF_LC_REC

    def make_model(self, train: TrainView, context: Context) -> None:
        self._check_text(train)
        super().make_model(train, context)

    def mixture(self) -> Mapping[Task, int]:
        return dict.fromkeys(self.config.tasks, self.config.text_examples)

    def _check_text(self, train: TrainView) -> None:
        if set(self.config.tasks) - {"sequence"} and not self.has_titles(train):
            raise InputError(
                f"{self.published_as}: none of the {train.num_items} items has a title, which the text tasks need; "
                "run the sequence task alone: tasks=[sequence]"
            )
