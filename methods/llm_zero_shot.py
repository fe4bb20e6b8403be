"""A causal language model asked as it is, without any tuning: the Llama2 row of RSLLM's table 2.

    genrec-bench run --method llm_zero_shot --dataset ml-100k --protocol cand20 --scale base

The prompt is text alone. ``chat`` puts it into the model's chat template; whether the paper asked a base or a chat
checkpoint is not printed. ``adaptation.epochs`` makes it read the training sequences first, and ``template=6`` shows it
no candidates: how far a tuned method gets by that alone. These are no rows of the paper. Tier tiny has random weights:
it is there to be run, not to be read.
"""

from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.base import Context
from genrec_bench.methods.candidates.language import AnsweringConfig, CandidateLanguageModel
from genrec_bench.methods.candidates.wording import HISTORY_ALONE


class ZeroShot(CandidateLanguageModel):
    """Any causal language model; but for an adaptation, untouched."""

    Config = AnsweringConfig
    published_as = "Llama2"

    def published_variant(self) -> str | None:
        return "not printed" if self.config.adaptation.epochs or self.config.template == HISTORY_ALONE else None

    def tune(self, train: TrainView, context: Context) -> None:
        """Nothing is learned."""
