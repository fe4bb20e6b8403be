"""What the language models of the candidate protocol share: backbone, prompts, answers, tuning in stages.

Tier tiny is a small Llama with a vocabulary of byte pairs, trained wholly; base is SmolLM2-135M with LoRA, paper
Llama-2-7B, which RSLLM, LLaRA and their rivals use.

``decode`` is how an answer comes about. ``free``: greedily, up to the end token or the end of its first line, and read
by ``match`` (LLaRA's released code; RSLLM's ValidRatio needs it). ``trie``: greedily among the candidates' titles.
``loglik``: the title of the highest likelihood, by default a mean over its tokens. The last two are always valid.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.datasets.splits import normalised_title
from genrec_bench.methods.base import Choice, Context, Method, ModelName, Rate, Resources, Scale
from genrec_bench.methods.candidates import inference
from genrec_bench.methods.candidates.adaptation import AdaptationSettings, adaptation, put
from genrec_bench.methods.candidates.inputs import ItemInputs, PromptedModel
from genrec_bench.methods.candidates.parsing import RULES
from genrec_bench.methods.candidates.prompts import BETWEEN, TITLES, PromptWriter, Row, Style, digits, joined
from genrec_bench.methods.candidates.tuning import AnswerLoss, ExampleMaker, Pool, PooledBatch, pooled_batches
from genrec_bench.methods.candidates.wording import (
    CONTINUED,
    HISTORY_ALONE,
    NO_HISTORY,
    NOUNS,
    TEMPLATES,
    CandidatesConfig,
    Question,
    plain,
    spoken,
)
from genrec_bench.methods.language.adapters import LoraSettings, adapt
from genrec_bench.methods.language.backbone import load_backbone
from genrec_bench.methods.language.training import TrainingConfig, add_dropout, train_language_model
from genrec_bench.methods.next_item import count_parameters

BACKBONES = {"tiny": "tiny", "base": "base", "paper": "meta-llama/Llama-2-7b-hf"}
ADAPTATION = "adaptation."  # begins the names of its tensors in a saved model
Weight = Annotated[float, Field(ge=0.0, le=10.0)]
Decode = Literal["free", "trie", "loglik"]


class AnsweringConfig(CandidatesConfig):
    """What is asked and how it is answered; lengths in tokens. Sizes are those of tier tiny."""

    added: ClassVar[dict[str, Any]] = {"adaptation": AdaptationSettings().model_dump(mode="json")}
    backbone: ModelName = None  # None: the tier's; else a hub id or folder of a causal language model
    adaptation: AdaptationSettings = Field(default_factory=AdaptationSettings)  # before all else; off by default
    # question at test; 5: the candidates, then the history, which the answer goes on with; 6: the history alone
    template: NonNegativeInt = Field(default=0, le=max(CONTINUED))
    chat: bool = False  # the question in the model's own chat template
    decode: Decode = "free"  # written freely, among the titles, or the likeliest title
    normalise: bool = True  # loglik: divided by the title's tokens
    beside: tuple[Decode, ...] = ()  # further ways that the trained model is measured in
    max_answer: PositiveInt = 64  # LLaRA's released code
    max_title: PositiveInt = 48  # tokens of a title, then "…"
    max_prompt: PositiveInt = 1536  # tokens; the oldest items of a longer question are left out
    decode_tokens: PositiveInt = 8192  # positions of prompts and answers computed at a time
    layers: PositiveInt = 4  # of tier tiny
    width: PositiveInt = 128  # of tier tiny
    heads: PositiveInt = 4  # of tier tiny
    feedforward: PositiveInt = 512  # of tier tiny
    tied: bool = True  # of tier tiny: one matrix reads and writes tokens

    @model_validator(mode="after")
    def _a_list_goes_on_with_a_title(self) -> Self:
        if self.chat and self.template in CONTINUED:
            raise ValueError(f"template={self.template} is a list to go on with, and no question: set chat=false")
        if self.template == HISTORY_ALONE and "free" in (self.decode, *self.beside):
            raise ValueError(
                f"template={HISTORY_ALONE} does not show the candidates, so that none can be chosen freely: set decode "
                "to trie or loglik, and leave free out of beside"
            )
        return self

    def less_memory(self) -> Self:
        return self.model_copy(update={"decode_tokens": -(-self.decode_tokens // 2)})


class AnswerLora(LoraSettings):
    """LLaRA's adapters."""

    dropout: Rate = 0.1


class TunedConfig(AnsweringConfig, TrainingConfig):
    """How the model is taught.

    Where rows are each other's negatives, ``batch_tokens`` positions are computed at a time, else ``rows_at_a_time``
    rows.
    """

    added: ClassVar[dict[str, Any]] = {**AnsweringConfig.added, "history_loss": 0.0}
    lora: AnswerLora = Field(default_factory=AnswerLora)  # of pretrained models
    batch: PositiveInt = 32  # rows a step
    rows_at_a_time: PositiveInt = 16  # computed at a time where there is no contrast
    examples: NonNegativeInt = 8  # targets of each training sequence an epoch, at random; 0: all of them
    history_loss: Weight = 0.0  # weight of the history's titles, learned beside the answer
    least_history: PositiveInt = 3  # items before a target, as the protocol has
    candidates: PositiveInt = 20  # in a training question
    vary: bool = True  # one of five templates is drawn for each training question; the test asks by ``template``

    @model_validator(mode="after")
    def _memory_has_one_bound(self) -> Self:
        if self.micro_batches != 1:
            raise ValueError("micro_batches is not used here: batch_tokens and rows_at_a_time bound what is computed")
        return self

    @model_validator(mode="after")
    def _test_is_asked_as_training(self) -> Self:
        if self.vary and self.template in CONTINUED:
            raise ValueError(f"template={self.template} is not among those that vary draws: set vary=false")
        return self

    def less_memory(self) -> Self:
        halves = ("decode_tokens", "batch_tokens", "rows_at_a_time")
        return self.model_copy(update={name: -(-getattr(self, name) // 2) for name in halves})


class CandidateLanguageModel(Method):
    """Asks a causal language model which of the candidates comes next. Subclasses say how it is taught, if at all."""

    family = "language"
    style: Style = TITLES  # of the prompts at test, or of the stage that is being validated
    model: PromptedModel
    tuned = False  # whether `fit` changes the model

    @classmethod
    def resources(cls, config: Any, scale: Scale) -> Resources:
        return Resources(gpus=0.25 if scale == "tiny" else 1.0)

    def fit(self, train: TrainView, context: Context) -> None:
        self._check_adaptation(context)  # before a recommender is trained in vain
        self.known: dict[bytes, str] | None = None  # answers are kept once the model changes no more
        self.make_model(train, context, self.item_table(train, context))
        self.tune(train, context)
        self._finish()

    @abstractmethod
    def tune(self, train: TrainView, context: Context) -> None:
        """Teach ``model``."""

    def item_table(self, train: TrainView, context: Context) -> np.ndarray | None:
        """Vectors (N, d) of all items, where the prompts hold any."""
        return None

    def styles(self) -> Sequence[Style]:
        """All styles that prompts are written in."""
        return (self.style,)

    def items(self, train: TrainView) -> Any:
        """The item table whose titles are shown."""
        if not (train.items["title"] != "").any():
            raise InputError(f"{type(self).__name__}: none of the {train.num_items} items has a title to ask about")
        return train.items

    def choose(self, histories: Histories, candidates: np.ndarray) -> Choice:
        asked = range(len(histories))
        questions = [self.writer.questions.ask(histories.row(b), candidates[b]) for b in asked]
        rows = [self.writer.prompt(question, self.style) for question in questions]
        if self.config.decode == "free":
            return self._answered(questions, rows)
        budget, model = self.config.decode_tokens, self.model
        titles = [[self.writer.answer(title) for title in question.titles] for question in questions]
        if self.config.decode == "trie":
            return Choice(inference.along_trie(model, rows, titles, budget))
        scores, lengths = inference.log_likelihoods(model, rows, titles, budget)
        scores = scores / lengths.astype(np.float32) if self.config.normalise else scores
        return Choice(scores.argmax(1) if len(scores) else np.zeros(0, dtype=np.int64), scores)

    def variants(self) -> dict[str, Method]:
        """The same model, its answers read by the other rule or made in the other ways that ``beside`` names."""
        config = self.config
        changes: dict[str, dict[str, Any]] = {}
        if config.decode == "free":
            changes = {f"match {match}": {"match": match} for match in RULES if match != config.match}
        for decode in config.beside:
            changes[decode] = {"decode": decode}
        if "free" in config.beside:
            for match in RULES:
                if match != config.match:
                    changes[f"free, match {match}"] = {"decode": "free", "match": match}
        if "loglik" in (config.decode, *config.beside):
            name = "loglik summed" if config.normalise else "loglik mean"
            changes[name] = {"decode": "loglik", "normalise": not config.normalise}
        found: dict[str, Method] = {}
        for name, change in changes.items():
            variant = copy.copy(self)
            variant.config = config.model_copy(update=change)
            found[name] = variant
        return found

    def parameters(self) -> tuple[int, int]:
        everything, trained = count_parameters(self.model)
        return everything, trained if self.tuned else 0

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(
            {name: value.contiguous() for name, value in self._learned().items()}, str(folder / "learned.safetensors")
        )

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        from safetensors.torch import load_file

        learned = load_file(str(folder / "learned.safetensors"))
        table = learned.get("inputs.table")
        adapters = {name: value for name, value in learned.items() if name.startswith(ADAPTATION)}
        self.make_model(train, context, None if table is None else table.numpy(), adapters)
        own = self._learned()
        if own.keys() != learned.keys():
            odd = sorted(own.keys() ^ learned.keys())[0]
            raise InputError(f"{folder}: not a model of this config: {odd} is in one of them only")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(learned[name])
        self._finish()

    def make_model(
        self,
        train: TrainView,
        context: Context,
        table: np.ndarray | None,
        adapters: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Set ``backbone``, ``writer``, ``stops`` and ``model``, on the context's device; seeded by the context.

        ``adapters`` are those of the config's adaptation, as `save` wrote them; None: they are learned.
        """
        config, items = self.config, self.items(train)
        name = self._backbone_name(context)
        sizes: dict[str, Any] = {}
        if name == "tiny":
            sizes = {
                "texts": self._texts(items), "spelling": "bytes", "layers": config.layers, "dim": config.width,
                "heads": config.heads, "feedforward": config.feedforward, "tie": config.tied,
            }  # fmt: skip
        self.backbone = load_backbone(name, kind="causal", device=context.device, seed=context.seed, **sizes)
        context.log(stage="backbone", **self.backbone.identity)
        tokenizer = self.backbone.tokenizer
        self.writer = PromptWriter(
            tokenizer, items, config, self._marker_size(tokenizer, len(items)), config.chat, self.backbone.ends
        )
        self._check_room()
        self.adaptation: dict[str, Tensor] = {}
        if config.adaptation.epochs:
            self._adapt(train, context, adapters)
        identities = {style.identity for style in self.styles()}
        inputs = ItemInputs(
            self.backbone.model.get_input_embeddings().weight, table, items=len(items), seed=context.seed,
            identifiers="token" in identities, learned=self.learns_table(),
        )  # fmt: skip
        self.adapted = self.tuned and name != "tiny"
        if self.tuned and name == "tiny":
            add_dropout(self.backbone.model, config.dropout)
        if self.tuned:
            adapt(self.backbone, config.lora if self.adapted else None, (), config.gradient_checkpointing)
        self.model = PromptedModel(self.backbone.model, inputs.to(context.device)).eval()
        self.stops = inference.Stops(tokenizer, context.device, self.writer.ends)
        self.log = context.log

    def _adapt(self, train: TrainView, context: Context, adapters: Mapping[str, Tensor] | None) -> None:
        settings, writer = self.config.adaptation, self.writer
        if adapters is not None:
            learned = {name.removeprefix(ADAPTATION): value for name, value in adapters.items()}
        else:
            shown = [writer.questions.title(item) for item in range(train.num_items)]
            lines = [writer.ids(title + BETWEEN) for title in shown]
            learned = adaptation(self.backbone, lines, train, settings, context, self)
        put(self.backbone, learned, settings)
        self.adaptation = {f"{ADAPTATION}{name}": value for name, value in learned.items()}

    def learns_table(self) -> bool:
        """Whether the vectors of `item_table` are trained."""
        return False

    def train_stage(
        self,
        train: TrainView,
        context: Context,
        loss: AnswerLoss,
        config: TunedConfig,
        style_at: Callable[[float], Callable[[np.random.Generator], Style]],
    ) -> None:
        """Teach the model until validation stops improving.

        ``style_at(share)`` gives what draws the style of a step's prompts once ``share`` of all steps is done.
        """
        questions = self.writer.questions
        names = [normalised_title(questions.title(item)) for item in range(train.num_items)]
        maker = ExampleMaker(train, names, config.max_history, config.candidates)
        pool = min(loss.pool or config.rows_at_a_time, config.batch)
        config = config.model_copy(update={"micro_batches": -(-config.batch // pool)})  # a pool is computed at a time
        current = 0

        def begin_epoch(epoch: int) -> None:
            nonlocal current
            current = epoch

        def batches(rng: np.random.Generator) -> Iterator[PooledBatch]:
            def maker_of(share: float) -> Callable[[np.ndarray, np.random.Generator], Pool]:
                style = style_at((current + share) / config.epochs)(rng)
                return partial(self._pool, maker, style)

            places = maker.places(config.examples, config.least_history, rng)
            if not len(places):
                raise InputError(f"{type(self).__name__}: no training sequence has two items")
            return pooled_batches(places, config.batch, pool, maker_of, rng)

        train_language_model(self.model, self, batches, loss, config, context, begin_epoch)

    def _pool(self, maker: ExampleMaker, style: Style, places: np.ndarray, rng: np.random.Generator) -> Pool:
        config, writer = self.config, self.writer
        rows: list[Row] = []
        alone: list[Row] = []
        targets: list[int] = []
        for row, place in places.tolist():
            example = maker.example(row, place, rng)
            template = int(rng.integers(len(TEMPLATES))) if config.vary else config.template
            question = writer.questions.ask(example.history, example.candidates, template)
            answer = writer.answer(writer.questions.title(example.target))
            rows.append(joined(writer.prompt(question, style), answer))
            alone.append(writer.alone(example.target, style))
            targets.append(example.target)
        return Pool(rows, alone, np.array(targets, dtype=np.int64))

    def _answered(self, questions: list[Question], rows: list[Row]) -> Choice:
        """What the model writes, read by the config's rule."""
        config = self.config
        keys = [row.tokens.tobytes() for row in rows]
        known = self.known if self.known is not None else {}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
        answers = inference.written(
            self.model, list(missing.values()), self.stops, config.max_answer, config.decode_tokens
        )
        tokenizer = self.backbone.tokenizer
        for key, answer in zip(missing, answers, strict=True):
            text = [token for token in answer if token not in self.writer.ends]
            known[key] = tokenizer.decode(text, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        asked = list(zip(questions, keys, strict=True))
        picked = [question.picked(known[key], config.match) for question, key in asked]
        if self.known is not None and missing:
            valid = {rule: sum(question.picked(known[key], rule) >= 0 for question, key in asked) for rule in RULES}
            self.log(stage="answers", questions=len(asked), tokens=sum(map(len, answers)), valid=valid)
        return Choice(np.array(picked, dtype=np.int64))

    def _finish(self) -> None:
        self.model.eval()
        self.known = {}

    def _learned(self) -> dict[str, Tensor]:
        """Whatever `fit` gave the model that its backbone has not."""
        if not self.tuned:
            return self.adaptation
        found: dict[str, Tensor] = {
            name: value
            for name, value in self.model.named_parameters()
            if name.startswith("inputs.") or not self.adapted or ".lora_" in name
        }
        return found | dict(self.model.inputs.named_buffers(prefix="inputs")) | self.adaptation

    def _texts(self, items: Any) -> list[str]:
        """What tier tiny's vocabulary is made of: the titles as shown, and our wordings."""
        titles = items["title"].astype(str).tolist()
        shown = [plain(title) for title in (spoken(titles) if self.config.titles == "spoken" else titles)]
        nouns = NOUNS[self.config.kind]._asdict()
        wordings = [part.format(**nouns) for template in TEMPLATES for part in template]
        # twice: a pair of letters must be seen twice to become a token, and so each word of a title is one
        return [*shown * 2, *[NO_HISTORY, digits(0), *wordings] * 100]

    def _marker_size(self, tokenizer: Any, count: int) -> int:
        """Tokens kept free behind a title for a marker and an identity, also where none follow.

        So all methods and styles show the same items, but where numbers are spelled out.
        """
        if any(style.identity == "digits" for style in self.styles()):
            return 1 + len(tokenizer(digits(count), add_special_tokens=False)["input_ids"])
        return 2

    def _backbone_name(self, context: Context) -> str:
        return self.config.backbone or BACKBONES[context.scale]

    def _check_adaptation(self, context: Context) -> None:
        if self.config.adaptation.epochs and self._backbone_name(context) == "tiny":
            raise InputError(
                "adaptation.epochs: tier tiny has random weights and no pretraining to go on with; set it to 0"
            )

    def _check_room(self) -> None:
        config = self.config
        positions = getattr(self.backbone.model.config, "max_position_embeddings", None)
        answer = max(config.max_answer, config.max_title + self.writer.end_size)
        needed = self.writer.around + config.max_prompt + answer
        if positions is not None and needed > positions:
            raise InputError(
                f"max_prompt={config.max_prompt}, {self.writer.around} tokens around it and an answer make up to "
                f"{needed} tokens, and the model reads {positions}: lower max_prompt or max_answer"
            )
        if positions is not None and config.adaptation.epochs and config.adaptation.positions > positions:
            raise InputError(
                f"adaptation.positions={config.adaptation.positions}, and the model reads {positions}: lower it"
            )
        if (config.adaptation.epochs or config.template == HISTORY_ALONE) and not self.writer.ids(BETWEEN):
            raise InputError(
                f"{type(self).__name__}: this model's tokenizer drops the end of a line, which a list of titles needs: "
                "set adaptation.epochs=0 and a template below 6"
            )
