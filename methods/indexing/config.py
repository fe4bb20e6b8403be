"""What an item index is made of and how: the one config of all builders."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from genrec_bench.datasets.store import home
from genrec_bench.methods.base import Content
from genrec_bench.methods.language.sources import folder_content

Builder = Literal["random", "hierarchical", "residual", "rqvae", "letter", "collaborative", "dual", "file"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

QUANTISERS = ("residual", "rqvae", "letter")  # builders that code vectors level by level, so that items may collide


class IndexConfig(BaseModel):
    """An item index. Fields that a builder does not read have no effect on it, nor on its place in the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    builder: Builder = "rqvae"
    # builder file: X.index.json of LETTER or LC-Rec, or item ids -> tokens as .json, .json.gz; a path, or the name of a
    # file in $GENREC_BENCH_HOME/indices, which is the same on every machine
    path: str | None = None
    sha256: str | None = None  # builder file: what the file must hash to
    # text vectors: tfidf_svd, minilm, backbone, a hub id or a folder
    vectors: Annotated[str, Content(folder_content)] = "tfidf_svd"
    levels: Annotated[int, Field(ge=1, le=8)] = 4  # tokens of a code, a counter level not included
    codes: Annotated[int, Field(ge=2, le=65_536)] = 256  # a level; hierarchical: at most, see `branching`
    # None: sinkhorn for quantisers (LC-Rec, LETTER), keep for files; nearest: the nearest free code of the last level,
    # whose vectors are far closer to the items' (docs/item_indices.md)
    collisions: Literal["keep", "sinkhorn", "nearest", "counter"] | None = None
    separate_identical: bool = True  # sinkhorn: items that it cannot part (same vector) move to the nearest free code
    # used: only codes that some item has (the released code's way); prefix: a token for each prefix of a code, see
    # `genrec_bench.methods.indexing.index.per_prefix`
    vocabulary: Literal["full", "used", "prefix"] = "full"
    seed: NonNegativeInt = 0  # of the index: every seed of a method shares one, as with published index files
    standardise: bool = True  # hierarchical: unit variance per dimension, then unit length (EAGER-LLM)

    # dual: EAGER-LLM's index of two sources, see `genrec_bench.methods.indexing.dual`
    mode: Literal["unit", "semantic", "behavior", "random"] = "unit"
    layout: Literal["semantic_first", "alternating", "behavior_first"] = "semantic_first"  # of the levels of `unit`
    leaf: Literal["singleton", "coarse"] = "singleton"  # where the trees of `unit` end
    leaf_size: Annotated[int, Field(ge=2)] = 8  # items of a coarse leaf, about

    # RQ-VAE and LETTER (TIGER section 3.1; LC-Rec and LETTER train 10,000-20,000 epochs)
    hidden: tuple[PositiveInt, ...] = (256, 128)  # widths of the encoder, mirrored by the decoder; TIGER: 512, 256, 128
    dim: PositiveInt = 32  # of a code vector; letter, dual: of a behaviour vector
    commitment: NonNegativeFloat = 0.25  # weight of the pull on the encoder
    epochs: PositiveInt = 100
    batch: PositiveInt = 256
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-4
    uniform_last_level: bool = True  # train the last level on Sinkhorn's uniform assignment (LC-Rec)
    sinkhorn_epsilon: Annotated[float, Field(ge=0.002)] = 0.003  # in training and in the repair of collisions

    # LETTER (section 4; the released script's weights)
    alpha: NonNegativeFloat = 0.01  # of the collaborative alignment
    beta: NonNegativeFloat = 1e-4  # of the diversity loss
    behaviour: str = "sasrec"  # letter, dual: the encoder of behaviour vectors
    groups: PositiveInt = 10  # of a level's codes in the diversity loss

    # P5-CID (How to Index Item IDs, 2023)
    clusters: Annotated[int, Field(ge=2)] = 20  # M: parts a cluster is split into
    cluster_limit: Annotated[int, Field(ge=2)] = 500  # t: largest cluster that is not split, and number of tokens

    # what stops a run before it trains on a poor index
    max_collision_rate: Share = 0.2  # 1 - distinct codes / items
    min_first_level_use: Share = 0.1  # codes used on the first level / those that could be

    @model_validator(mode="after")
    def _fits(self) -> "IndexConfig":
        if (self.builder == "file") != (self.path is not None):
            raise ValueError("path is for builder=file, which needs one")
        if self.sha256 is not None and self.builder != "file":
            raise ValueError("sha256 is for builder=file")
        if self.clusters > self.cluster_limit:  # siblings would share tokens, see `collaborative`
            raise ValueError(f"clusters={self.clusters} must not exceed cluster_limit={self.cluster_limit}")
        if self.builder == "dual" and self.mode == "unit" and self.levels % 2:
            raise ValueError(f"levels={self.levels}: mode=unit gives each source half of them, so an even number")
        allowed = {"file": ("keep", "counter"), **dict.fromkeys(QUANTISERS, ("keep", "sinkhorn", "nearest", "counter"))}
        choices = allowed.get(self.builder, ())
        if self.collisions is not None and self.collisions not in choices:
            rule = f"choose from {', '.join(choices)}" if choices else "its codes never collide: leave it out"
            raise ValueError(f"collisions={self.collisions} does not go with builder={self.builder}; {rule}")
        return self

    @property
    def file(self) -> Path | None:
        """Where the index file is."""
        if self.path is None:
            return None
        here = Path(self.path).expanduser()
        is_name = here.name == self.path and not here.exists()
        return home() / "indices" / self.path if is_name else here

    @property
    def policy(self) -> str:
        """What happens to colliding codes."""
        return self.collisions or ("sinkhorn" if self.builder in QUANTISERS else "keep")
