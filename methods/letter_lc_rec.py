"""LETTER-LC-Rec: LC-Rec's sequence task on LETTER's item codes (Wang et al., CIKM 2024, arXiv 2405.07314).

    genrec-bench run --method letter_lc_rec --dataset ml-100k

LETTER's codes (`genrec_bench.methods.indexing.letter`) align with a recommender's item vectors and are spread evenly.
The ranking-guided loss is the cross-entropy at ``temperature``; the released scripts run it at 1.
"""

from pydantic import Field, PositiveFloat

from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.language.examples import Task
from genrec_bench.methods.lc_rec import LCRec, LCRecConfig


class LetterLCRecConfig(LCRecConfig):
    """As `LCRecConfig`, but for the index and the tasks."""

    index: IndexConfig = Field(default_factory=lambda: IndexConfig(builder="letter"))
    tasks: tuple[Task, ...] = ("sequence",)
    temperature: PositiveFloat = 1.0


class LetterLCRec(LCRec):
    """LC-Rec with a learnable tokenizer."""

    Config = LetterLCRecConfig
    published_as = "LETTER-LC-Rec"
