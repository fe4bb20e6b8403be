"""LETTER-TIGER: TIGER on LETTER's item codes (Wang et al., CIKM 2024, arXiv 2405.07314).

    genrec-bench run --method letter_tiger --dataset ml-100k

LETTER's codes (`genrec_bench.methods.indexing.letter`) align with a recommender's item vectors and are spread evenly.
The ranking-guided loss is the cross-entropy at ``temperature``; the released scripts run it at 1.
Deviation: a vocabulary of codes alone; the released code keeps T5's words, which its prompts never hold.
"""

from pydantic import Field

from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.tiger import Tiger, TigerConfig


class LetterTigerConfig(TigerConfig):
    """As `TigerConfig`, but for the index."""

    index: IndexConfig = Field(default_factory=lambda: IndexConfig(builder="letter"))


class LetterTiger(Tiger):
    """TIGER with a learnable tokenizer."""

    Config = LetterTigerConfig
    published_as = "LETTER-TIGER"
