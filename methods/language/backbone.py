"""Language models by tier, hub id or folder, each ready to train: `load_backbone`.

``tiny`` is a Llama (or T5) of a few million parameters built here, with a vocabulary of words; ``base`` is
SmolLM2-135M-Instruct; anything else is a hub id or a folder. Nothing here reaches for a hub unless a hub id is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.language import gguf_model, sources, vocabulary
from genrec_bench.methods.language.sources import ModelSource, quietly
from genrec_bench.methods.seeding import seeded

GenerativeKind = Literal["causal", "seq2seq"]
PRODUCT = {"causal": "a causal language model", "seq2seq": "a sequence-to-sequence model", "encoder": "an encoder"}


@dataclass
class Backbone:
    """A language model, its tokenizer, and where they come from.

    ``model`` is a transformers model (or a PEFT one around it), ``identity`` what determines its weights.
    """

    model: Any
    tokenizer: Any
    kind: GenerativeKind
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        parameter: torch.Tensor = next(self.model.parameters())
        return parameter.device

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end what the model writes: of a text, as its tokenizer says, and of its generation settings.

        Of models that chat those hold the end of a turn, which may be another token.
        """
        given = self.model.generation_config.eos_token_id
        more = given if isinstance(given, list | tuple) else [] if given is None else [given]
        return tuple(dict.fromkeys([self.tokenizer.eos_token_id, *more]))


def load_backbone(
    name: str,
    *,
    kind: GenerativeKind | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    texts: Sequence[str] = (),
    seed: int = 0,
    spelling: Literal["words", "bytes"] = "words",
    **sizes: Any,
) -> Backbone:
    """The language model called ``name``: ``tiny``, ``base``, a hub id, or a folder.

    ``kind`` is what the caller needs (None: whatever it is; of tier tiny a causal one). ``dtype`` is a torch name; None
    is float32, and bfloat16 for more than 2 GB of weights on a GPU. ``texts``, ``seed`` and ``sizes`` make tier tiny:
    its words are those of ``texts``, or with ``spelling="bytes"`` byte pairs, which write any text.
    Raises InputError for a model that is not there, damaged, or of another kind.
    """
    sources.require("transformers")
    if name == "tiny":
        learn: Callable[[Sequence[str]], Any] = vocabulary.word_tokenizer
        if spelling == "bytes":
            learn = vocabulary.byte_tokenizer
        tokenizer = learn(texts)
        make: dict[str, Callable[..., Any]] = {"causal": tiny_llama, "seq2seq": tiny_t5}
        model = make[kind or "causal"](len(tokenizer), seed=seed, **sizes).to(
            device=device, dtype=_dtype(dtype or "float32")
        )
        return Backbone(model, tokenizer, kind or "causal", {"model": f"tiny-{model.config.model_type}"})
    if name == "paper":
        raise InputError(
            "Tier paper has no model of its own: name the paper's by hub id or folder, such as "
            "meta-llama/Llama-3.2-1B or huggyllama/llama-7b"
        )
    source = gguf_model.smollm2() if name == "base" else sources.locate(name)
    found = _check_kind(name, source.folder, kind)
    model = _pretrained(source, found, dtype or sources.precision(source.folder, device)).to(device)
    return Backbone(model, _tokenizer(source), found, source.identity)


def tiny_llama(
    vocab_size: int,
    *,
    layers: int = 4,
    dim: int = 128,
    heads: int = 4,
    feedforward: int = 512,
    positions: int = 2048,
    dropout: float = 0.0,
    tie: bool = True,
    seed: int = 0,
) -> Any:
    """A Llama for causal language modelling with random weights, 1 M parameters beside its vocabulary."""
    sources.require("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    _check_sizes("tiny Llama", dim=dim, heads=heads)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=dim,
        intermediate_size=feedforward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=positions,
        attention_dropout=dropout,
        tie_word_embeddings=tie,
        pad_token_id=vocabulary.PAD,
        bos_token_id=vocabulary.BOS,
        eos_token_id=vocabulary.EOS,
    )
    return _seeded(LlamaForCausalLM, config, seed)


def tiny_t5(
    vocab_size: int,
    *,
    layers: int = 4,
    dim: int = 128,
    heads: int = 6,
    head_dim: int = 64,
    feedforward: int = 1024,
    dropout: float = 0.1,
    seed: int = 0,
) -> Any:
    """A T5 with random weights in the sizes of TIGER (Rajput et al. 2023, section 4): ``layers`` on either side."""
    sources.require("transformers")
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=vocab_size,
        d_model=dim,
        d_kv=head_dim,
        d_ff=feedforward,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        dropout_rate=dropout,
        feed_forward_proj="relu",
        pad_token_id=vocabulary.PAD,
        eos_token_id=vocabulary.EOS,
    )
    config.decoder_start_token_id = vocabulary.PAD  # T5's own convention
    return _seeded(T5ForConditionalGeneration, config, seed)


def _seeded(model_class: Any, config: Any, seed: int) -> Any:
    """Same weights for the same seed, and the caller's random numbers as they were."""
    with seeded(seed):
        return model_class(config).eval()


def _check_sizes(what: str, dim: int, heads: int) -> None:
    if dim % (2 * heads):
        raise InputError(f"{what}: dim={dim} must be a multiple of twice heads={heads} (rotary positions pair numbers)")


def _check_kind(name: str, folder: Path, wanted: GenerativeKind | None) -> GenerativeKind:
    architecture, found = sources.architecture(folder)
    if found == "encoder" or (wanted is not None and found != wanted):
        needed = PRODUCT[wanted or "causal"]
        raise InputError(f"Model '{name}' is {PRODUCT[found]} ({architecture}), but {needed} is needed here")
    return found


def _pretrained(source: ModelSource, kind: GenerativeKind, dtype: str) -> Any:
    """The model with all its weights: one that is missing would be random without a word."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}[kind]
    try:
        with quietly():
            model, report = auto.from_pretrained(
                source.folder, dtype=_dtype(dtype), local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # transformers, safetensors and torch name damage in their own ways
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"Model folder {source.folder} cannot be loaded: {first_line}") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"Model folder {source.folder} lacks {len(missing)} of the model's tensors, the first is {missing[0]}"
        )
    return model.eval()


def _tokenizer(source: ModelSource) -> Any:
    from transformers import AutoTokenizer

    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except Exception as error:  # as above; a missing sentencepiece is an ImportError
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"Model folder {source.folder} has no tokenizer that can be loaded: {first_line}") from error
    if tokenizer.eos_token is None:
        raise InputError(
            f"Model '{source.identity['model']}' has a tokenizer without an end token, which ends whatever the model "
            "writes: name one as eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # Llama's have none; what is masked needs none
    return tokenizer


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InputError(f"dtype '{name}' is not known here: {', '.join(known)}")
    return known[name]
