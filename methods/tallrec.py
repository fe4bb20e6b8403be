"""TALLRec: a language model tuned by LoRA on text prompts (Bao et al., RecSys 2023, arXiv 2305.00447).

    genrec-bench run --method tallrec --dataset ml-100k --protocol cand20

Deviation: TALLRec answers Yes or No for one item. Under this protocol the answer is the title of one of 20 candidates,
as in LLaRA's adaptation of it, whose figures RSLLM prints: RSLLM without item identity, in one stage, without contrast.
Deviation: its first tuning, on Alpaca's instructions, is left to the choice of the backbone.
"""

from pydantic import Field, PositiveFloat

from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.base import Context, Rate
from genrec_bench.methods.candidates.language import AnswerLora, CandidateLanguageModel, TunedConfig
from genrec_bench.methods.candidates.prompts import TITLES
from genrec_bench.methods.candidates.tuning import AnswerLoss


class TALLRecLora(AnswerLora):
    """TALLRec's adapters: on the queries and values of attention."""

    alpha: PositiveFloat = 16.0
    dropout: Rate = 0.05
    targets: tuple[str, ...] | None = ("q_proj", "v_proj")


class TALLRecConfig(TunedConfig):
    """As `TunedConfig`, with TALLRec's adapters."""

    lora: TALLRecLora = Field(default_factory=TALLRecLora)


class TALLRec(CandidateLanguageModel):
    """Text prompts and LoRA."""

    Config = TALLRecConfig
    published_as = "TALLRec"
    tuned = True

    def tune(self, train: TrainView, context: Context) -> None:
        loss = AnswerLoss(self.model, history=self.config.history_loss)
        self.train_stage(train, context, loss, self.config, lambda share: lambda rng: TITLES)
