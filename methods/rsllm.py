"""RSLLM: recommendation systems as a new language in large models: hybrid prompts, two stages, two contrasts.

    genrec-bench run --method rsllm --dataset ml-100k --protocol cand20
    genrec-bench run suites/rsllm_table4.yaml

An item in a prompt is its title, the marker [DSR], and an identity: in stage 1 a token [IID k] of its own, in stage 2
the projected vector of a recommender's item table, which stays as it is. Both stages minimise
L_N + gamma L_I + beta L_U (`genrec_bench.methods.candidates.tuning`). docs/methods/rsllm.md says what is printed, what
is ours, and how each table is rebuilt.

Deviation: stage 1 shows item numbers as algorithm 1 says; the paper's text describes it with titles alone, which is
``stage1.prompt=text_only``.
Deviation: the answer of ``item.name=number`` is the number, since that is all the model can copy.
Deviation: vectors of items that nobody took in training are the mean of the others'.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.base import Context, MethodConfig
from genrec_bench.methods.candidates.language import CandidateLanguageModel, Weight
from genrec_bench.methods.candidates.prompts import HYBRID, TITLES, Style
from genrec_bench.methods.candidates.tables import EncoderConfig, encoder_table, printed_encoder
from genrec_bench.methods.candidates.tuning import AnswerLoss


class ItemSettings(MethodConfig):
    """What an item is in a prompt: table 4's first block, figure 3."""

    name: Literal["title", "number"] = "title"  # number: of the item, in digits, also as the answer
    title: bool = True  # false: w/o textual features; the answer is a title all the same
    item_id: bool = True  # false: w/o item ID representation; names alone in both stages
    iid_tokens: bool = True  # false: w/o IID tokens; stage 1 shows names alone
    iid: Literal["token", "digits"] = "token"  # [IID k] as a learned row of its own, or spelt out
    preloaded: bool = True  # false: the item table starts at random and learns


class ContrastSettings(MethodConfig):
    """Contrastive alignment: table 4's second block. Values of section 5.1; the pool is ours."""

    item: bool = True  # L_I: the target by itself and after the user's history
    user: bool = True  # L_U: the user's history and the target
    gamma: Weight = 0.3  # weight of L_I
    beta: Weight = 0.4  # weight of L_U
    temperature: PositiveFloat = 0.5  # that cosines are divided by
    pool: PositiveInt = 32  # rows that are each other's negatives; a smaller batch's where it is left at this

    @property
    def weights(self) -> tuple[float, float]:
        """Of L_I and L_U; 0: switched off."""
        return self.gamma * self.item, self.beta * self.user


class Stage1Settings(MethodConfig):
    """Text-only fine-tuning; the config's own epochs are those of stage 2."""

    prompt: Literal["text_id", "text_only"] = "text_id"  # titles with [IID k], or alone
    epochs: PositiveInt = 3  # of stage 1


class RSLLMConfig(EncoderConfig):
    """RSLLM's switches."""

    item: ItemSettings = Field(default_factory=ItemSettings)
    contrast: ContrastSettings = Field(default_factory=ContrastSettings)
    stages: tuple[Literal[1, 2], ...] = (1, 2)  # 1: text alone; 2: with vectors
    stage1: Stage1Settings = Field(default_factory=Stage1Settings)

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {"learning_rate": (1e-5, 1e-3)}

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.stages not in ((1,), (2,), (1, 2)):
            raise ValueError("stages are [1], [2] or [1, 2]")
        for stage in self.stages:
            if not (style := style_of(self, stage)).named and style.identity == "none":
                raise ValueError(f"nothing is left of an item in stage {stage}: keep its title or its identity")
        return self

    @model_validator(mode="after")
    def _a_pool_is_part_of_a_step(self) -> Self:
        pool = self.contrast.pool  # the default is written out in a stored config, so a given one looks the same
        if pool > self.batch and pool != ContrastSettings().pool:
            raise ValueError(
                f"contrast.pool={pool} rows are each other's negatives, and a step has batch={self.batch}: set "
                f"contrast.pool to {self.batch} at most, or batch to {pool}"
            )
        return self


def style_of(config: RSLLMConfig, stage: int) -> Style:
    """How a stage's prompts show an item."""
    item = config.item
    if stage == 2:
        return replace(HYBRID, named=item.title) if item.item_id else replace(TITLES, named=item.title)
    shown = item.item_id and item.iid_tokens and config.stage1.prompt == "text_id"
    return Style(named=item.title, marker=shown, identity=item.iid if shown else "none")


class RSLLM(CandidateLanguageModel):
    """Hybrid prompts, two stages, two contrasts."""

    Config = RSLLMConfig
    published_as = "RSLLM"
    tuned = True
    stage: int | None = None  # under training; None: the last one is done

    @property
    def style(self) -> Style:  # type: ignore[override]
        return style_of(self.config, self.stage or self.config.stages[-1])

    def styles(self) -> Sequence[Style]:
        return [style_of(self.config, stage) for stage in self.config.stages]

    def items(self, train: TrainView) -> Any:
        if self.config.item.name == "number":
            return train.items.assign(title=[str(item) for item in range(train.num_items)])
        return super().items(train)

    def item_table(self, train: TrainView, context: Context) -> np.ndarray | None:
        config = self.config
        if not any(style.identity == "vector" for style in self.styles()):
            return None
        if config.item.preloaded:
            return encoder_table(config, train, context)
        rng = np.random.default_rng([context.seed, train.num_items])
        return rng.standard_normal((train.num_items, config.encoder_dim), dtype=np.float32)

    def learns_table(self) -> bool:
        return not self.config.item.preloaded

    def tune(self, train: TrainView, context: Context) -> None:
        for stage in self.config.stages:
            self.stage = stage
            self._learn(stage, train, context)
        self.stage = None

    def loss(self) -> AnswerLoss:
        """L_N + gamma L_I + beta L_U, as far as they are switched on."""
        contrast = self.config.contrast
        gamma, beta = contrast.weights
        return AnswerLoss(
            self.model,
            history=self.config.history_loss,
            pool=contrast.pool,
            positions=self.config.batch_tokens,
            gamma=gamma,
            beta=beta,
            temperature=contrast.temperature,
        )

    def _learn(self, stage: int, train: TrainView, context: Context) -> None:
        config = self.config
        last = stage == config.stages[-1]
        if stage == 1:
            config = config.model_copy(update={"epochs": config.stage1.epochs})
        if not last:
            context = replace(context, checkpoint=context.checkpoint.beside(f"stage{stage}"))
        style = style_of(config, stage)
        self.train_stage(train, context, self.loss(), config, lambda share: lambda rng: style)

    def published_variant(self) -> str | None:
        """The row of table 2 with this encoder, or of table 4 where one switch is off."""
        config, item = self.config, self.config.item
        of_items, of_users = (weight > 0 for weight in config.contrast.weights)
        one = {(True, False): "contrastive=I-I only", (False, True): "contrastive=U-T only"}
        aligned = one.get((of_items, of_users), "w/o contrastive alignment")
        stages = {(1,): "stage 1 only", (2,): "stage 2 only"}
        off = [
            name
            for name, switched_off in {
                "w/o textual feature": not item.title,
                "w/o item ID representation": not item.item_id,
                "w/o IID tokens": not item.iid_tokens,
                "w/o pre-loaded item embeddings": not item.preloaded,
                aligned: not (of_items and of_users),
                stages.get(config.stages, ""): config.stages != (1, 2),
                "not printed": item.name == "number" or config.stage1.prompt != "text_id",
            }.items()
            if switched_off
        ]
        if not off:
            return printed_encoder(config)
        return off[0] if len(off) == 1 and printed_encoder(config) == "encoder=SASRec" else "not printed"
