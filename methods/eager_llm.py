"""EAGER-LLM: codes of text and behaviour, contrast against both, an annealing adapter (WWW 2025, arXiv 2502.14735).

    genrec-bench run --method eager_llm --dataset ml-100k
    genrec-bench run suites/eager_ladder.yaml

Three parts, each a switch: the dual-source index (DKI: ``index.mode``, ``index.levels``), the global contrast task
(GCT: ``gct.enabled``) and the annealing adapter (AAT: ``aat.enabled``), over a mixture of tasks (CIT: ``cit``).
docs/methods/eager_llm.md says what is printed, what is ours, and how each table is rebuilt.

Deviation: the behaviour encoder is DIN (the paper: a two-tower model); text vectors at tier tiny are TF-IDF's, since
its language model has never read a text. Trees and contrast take both standardised and of unit length.
Deviation: the adapter's learning rate falls as a cosine; how it falls is not printed.
Deviation: preference texts come from the training items' categories or titles, not from an external model.
Deviation: a code has a fixed length and no end token, so [CON] stands after the token that follows the code (the
separator, with ``examples=prefix`` the end of the sequence). It has no row in the vocabulary.
Deviation: ``examples=sequence`` learns all items of a history in one pass, each with a [CON] of its own; ``prefix`` is
the paper's one example a prefix. The loss on a code is over its level; ``loss_over=vocabulary`` is the paper's.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, Method, MethodConfig, Ranking
from genrec_bench.methods.decoding.beam import Hook
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.language import gguf_model, prompts
from genrec_bench.methods.language.adapters import LoraSettings, adapt, base_weights, load_adapter, merge, save_adapter
from genrec_bench.methods.language.batches import packed_batches
from genrec_bench.methods.language.contrast import GlobalContrast
from genrec_bench.methods.language.examples import Task
from genrec_bench.methods.language.training import Batch, train_language_model
from genrec_bench.methods.language.vocabulary import start_at_centroids
from genrec_bench.methods.next_item import count_parameters, load_weights
from genrec_bench.methods.prompted import BACKBONES, Prompted, PromptedConfig
from genrec_bench.methods.seeding import seeded

LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TITLE_ROWS = 128  # titles written at a time
# the sources whose centroids codes start at, for each mode of the index
CENTROIDS: dict[str, tuple[str, ...]] = {
    "unit": ("text", "behaviour"), "semantic": ("text",), "behavior": ("behaviour",), "random": (),
}  # fmt: skip
Weight = Annotated[float, Field(ge=0.0, le=10.0)]


class GctSettings(MethodConfig):
    """Global contrast decompression. The paper prints neither weights nor temperature."""

    enabled: bool = True  # global contrast decompression
    lambda_s: Weight = 0.1  # of the contrast with text vectors; 0: without
    lambda_b: Weight = 0.1  # of the contrast with behaviour vectors; 0: without
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] = 0.07  # of both contrasts


class CitSettings(MethodConfig):
    """The mixture beside sequence recommendation, which has every target: examples of each task an epoch; 0: none."""

    reconstruction: NonNegativeInt = 20_000  # of each: text to code, code to title, to details, to description
    preference: NonNegativeInt = 20_000  # of each: the next item across codes and titles, preference texts


class AatLora(LoraSettings):
    """Adapters of a Llama's linear layers."""

    targets: tuple[str, ...] | None = LLAMA_LAYERS


class AatSettings(MethodConfig):
    """Annealing adapter tuning. Printed: an adapter alone, a limited amount of good sequences; the rest is ours."""

    enabled: bool = True  # annealing adapter tuning
    enabled_at_inference: bool = True  # for recommendation; texts are written without the adapter
    lora: AatLora = Field(default_factory=AatLora)
    learning_rate: PositiveFloat = 5e-5  # falls to 0
    epochs: PositiveInt = 1
    min_interactions: Annotated[int, Field(ge=2)] = 2  # of a user in training, whose last one is the target


class EagerLLMConfig(PromptedConfig):
    """As `PromptedConfig`, with EAGER-LLM's parts."""

    # vectors=backbone: the method's own language model; tfidf_svd at tier tiny
    index: IndexConfig = Field(
        default_factory=lambda: IndexConfig(builder="dual", vectors="backbone", behaviour="din", dim=64)
    )
    # how the codes' embeddings start; centroids: of the index's source vectors, alike for alike items
    code_start: Literal["mean", "centroids"] = "mean"
    gct: GctSettings = Field(default_factory=GctSettings)
    cit: CitSettings = Field(default_factory=CitSettings)
    aat: AatSettings = Field(default_factory=AatSettings)

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "learning_rate": (1e-4, 3e-3),
        "dropout": [0.1, 0.2, 0.3],
        "thinning": [0.0, 0.3, 0.5],
    }


class EagerLLM(Prompted):
    """Endogenous (text) and exogenous (behaviour) knowledge in one language model."""

    Config = EagerLLMConfig
    published_as = "EAGER-LLM"
    wordings = prompts.OF_EAGER_LLM
    open_sequence_wordings = prompts.VARIED_OPEN_SEQUENCE
    adapted: bool  # whether the adapter, where there is one, takes part in recommendation
    adapted_text: bool  # and in writing titles
    trained = 0  # weights that stage 1 changed; unknown of a loaded model

    def fit(self, train: TrainView, context: Context) -> None:
        self._check_sources(train)
        super().fit(train, context)

    def index_config(self, context: Context) -> IndexConfig:
        config: IndexConfig = self.config.index
        if config.vectors != "backbone":
            return config
        name = self.config.backbone or BACKBONES[context.scale]
        if name == "base" and context.scale != "base":  # "backbone" is the tier's own
            name = str(gguf_model.smollm2().folder)
        return config.model_copy(update={"vectors": {"tiny": "tfidf_svd", "base": "backbone"}.get(name, name)})

    def make_model(self, train: TrainView, context: Context) -> None:
        super().make_model(train, context)
        self.adapted, self.adapted_text = True, False  # in training, adapters are judged as they are trained

    def mixture(self) -> Mapping[Task, int]:
        cit = self.config.cit
        reconstruction: tuple[Task, ...] = (
            "item_to_code", "code_to_title", "code_to_details", "code_to_description",
        )  # fmt: skip
        preference: tuple[Task, ...] = ("fusion", "preference")
        return {
            "sequence": 1,
            **dict.fromkeys(reconstruction, cit.reconstruction),
            **dict.fromkeys(preference, cit.preference),
        }

    def train(self, train: TrainView, context: Context) -> None:
        """Initial training (section 3.4), then annealing adapter tuning (section 3.5)."""
        if self.config.code_start == "centroids":
            vectors = np.concatenate(list(self._sources(train, context, CENTROIDS[self.config.index.mode]).values()), 1)
            start_at_centroids(self.backbone, self.index, self.code_ids, vectors, context.seed)
        adapt(self.backbone, self.config.lora, self.code_ids, self.config.gradient_checkpointing)
        contrast = self._contrast(train, context)

        def epoch(rng: np.random.Generator) -> Iterator[Batch]:
            return self._batches(train.sequences, rng, asides=contrast is not None)

        if contrast is not None:  # trained with the model, and dropped afterwards
            self.model.add_module("contrast", contrast)
        train_language_model(self.model, self, epoch, self.loss(contrast), self.config, context)
        if contrast is not None:
            del self.model.contrast
        self.trained = count_parameters(self.model)[1]
        merge(self.backbone)
        if self.config.aat.enabled:
            self._anneal(train, context)
        self.adapted = self.config.aat.enabled_at_inference

    def search(self, histories: Histories, k: int, hooks: Sequence[Hook | None], **options: Any) -> list[Ranking]:
        with self._adapter(self.adapted):
            return super().search(histories, k, hooks, **options)

    @torch.inference_mode()
    def write_titles(self, items: np.ndarray) -> list[str]:
        """The title that the model writes for each item's code, greedily."""
        tokenizer, titles = self.backbone.tokenizer, []
        prompt = self.writer.title_prompt(items)
        order = np.argsort(prompt.lengths, kind="stable")
        for start in range(0, len(order), TITLE_ROWS):
            part = prompt.select(order[start : start + TITLE_ROWS])
            asked = [
                part.tokens[first:last].tolist() for first, last in zip(part.offsets, part.offsets[1:], strict=False)
            ]
            padded = tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
            with self._adapter(self.adapted_text):
                written = self.model.generate(
                    **padded.to(self.backbone.device), max_new_tokens=self.config.max_text + 1, do_sample=False
                )
            titles += tokenizer.batch_decode(written[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
        return [titles[place] for place in np.argsort(order, kind="stable")]

    def variants(self) -> dict[str, Method]:
        if not self.config.aat.enabled:
            return {}
        found: dict[str, Method] = {}
        for name, adapted in (("adapter on", True), ("adapter off", False)):
            variant = copy.copy(self)
            variant.adapted = variant.adapted_text = adapted
            found[name] = variant
        return found

    def published_variant(self) -> str | None:
        """The ladder of the paper's table 4, for four tokens a code and the whole mixture of tasks."""
        config, index, gct = self.config, self.config.index, self.config.gct
        as_printed = (
            index.builder == "dual"
            and index.levels == 4
            and config.cit.reconstruction
            and config.cit.preference
            and (not gct.enabled or (gct.lambda_s and gct.lambda_b))
            and (not config.aat.enabled or config.aat.enabled_at_inference)
        )
        ladder = {
            ("random", False, False): "w/o DKI+GCT+AAT (random index)",
            ("unit", False, False): "DKI",
            ("unit", True, False): "DKI+GCT",
            ("unit", True, True): None,
        }
        steps = (index.mode, gct.enabled, config.aat.enabled)
        return ladder.get(steps, "not printed") if as_printed else "not printed"

    def parameters(self) -> tuple[int, int]:
        everything, adapter = count_parameters(self.model)
        return everything, self.trained + (adapter if self.config.aat.enabled else 0)

    def save_model(self, folder: Path) -> None:
        from safetensors.torch import save_file

        weights = {name: value.contiguous() for name, value in base_weights(self.model).items()}
        save_file(weights, str(folder / "weights.safetensors"))
        if self.config.aat.enabled:
            save_adapter(self.backbone, folder / "adapter")

    def load_model(self, folder: Path) -> None:
        load_weights(self.model, folder)
        if self.config.aat.enabled:
            load_adapter(self.backbone, folder / "adapter")
        self.adapted = self.config.aat.enabled_at_inference

    def _adapter(self, on: bool) -> AbstractContextManager[Any]:
        """Inside, the adapter is ``on`` or off; it is on outside, where there is one."""
        if on or not hasattr(self.model, "disable_adapter"):
            return nullcontext()
        off: AbstractContextManager[Any] = self.model.disable_adapter()
        return off

    def _contrast(self, train: TrainView, context: Context) -> GlobalContrast | None:
        """The contrast that the config asks for, with the vectors that the index is made of."""
        gct = self.config.gct
        weights = {"text": gct.lambda_s, "behaviour": gct.lambda_b}
        asked = [name for name, weight in weights.items() if gct.enabled and weight]
        if not asked:
            return None
        sources = [(name, weights[name], vectors) for name, vectors in self._sources(train, context, asked).items()]
        return GlobalContrast(sources, self.backbone.hidden_size, gct.temperature, context.seed).to(context.device)

    def _sources(self, train: TrainView, context: Context, asked: Sequence[str]) -> dict[str, np.ndarray]:
        """The standardised vectors (N, d) of "text" and "behaviour", those ``asked`` for."""
        from genrec_bench.methods.encoders.behaviour import behaviour_vectors, with_cold_items
        from genrec_bench.methods.encoders.text import text_vectors
        from genrec_bench.methods.indexing.hierarchical import standardised

        index, found = self.index_config(context), {}
        text = text_vectors(train.items, index.vectors, context) if self.has_titles(train) else None
        if "text" in asked:
            assert text is not None  # `_check_sources`
            found["text"] = standardised(text)
        if "behaviour" in asked:
            behaviour = behaviour_vectors(train, context, index.behaviour, index.dim, index.seed)
            found["behaviour"] = standardised(with_cold_items(behaviour, train.item_counts() > 0, text))
        return found

    def _anneal(self, train: TrainView, context: Context) -> None:
        """Tune the adapter alone on each user's longest training sequence."""
        aat = self.config.aat
        with seeded(context.seed):
            adapt(self.backbone, aat.lora, (), self.config.gradient_checkpointing)
        rows = train.sequences.select(train.sequences.lengths >= aat.min_interactions)
        if not len(rows):
            raise InputError(f"aat.min_interactions={aat.min_interactions}: no user has as many in training")
        examples = self.writer.longest(rows, open_end=self.config.examples == "sequence")
        config = self.config.model_copy(
            update={
                "learning_rate": aat.learning_rate, "epochs": aat.epochs, "patience": aat.epochs, "warmup": 0.0,
                "min_rate": 0.0, "validate_every": 1,
                "averaging": 0.0,  # a mean over so few steps would undo the annealing
            }
        )  # fmt: skip
        train_language_model(
            self.model,
            self,
            lambda rng: packed_batches(examples, self._row_tokens(), config.batch_tokens, self.pad, rng),
            self.loss(),
            config,
            replace(context, checkpoint=context.checkpoint.beside("adapter")),
        )

    def _check_sources(self, train: TrainView) -> None:
        config, needed = self.config, []
        if config.index.builder == "dual" and config.index.mode in ("unit", "semantic"):
            needed.append(f"index.mode={config.index.mode} (behavior and random need none)")
        if config.code_start == "centroids":
            if not CENTROIDS[config.index.mode]:
                raise InputError("code_start=centroids: index.mode=random has no source vectors; use code_start=mean")
            if "text" in CENTROIDS[config.index.mode]:
                needed.append("code_start=centroids (mean needs none)")
        if config.gct.enabled and config.gct.lambda_s:
            needed.append(f"gct.lambda_s={config.gct.lambda_s:g} (0 leaves it out)")
        if tasks := [name for name in ("reconstruction", "preference") if getattr(config.cit, name)]:
            needed.append(f"cit.{tasks[0]} (0 leaves it out)")
        if needed and not self.has_titles(train):
            raise InputError(
                f"{self.published_as}: none of the {train.num_items} items has a title, which is needed for "
                + "; ".join(needed)
            )
