"""What a language model can say: a vocabulary of words for tier tiny, and a token for each code of an item index."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.indexing.index import ItemIndex
from genrec_bench.methods.language import sources

if TYPE_CHECKING:
    from genrec_bench.methods.language.backbone import Backbone

SPECIAL = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
PAD, BOS, EOS, UNK = range(len(SPECIAL))
MAX_WORDS = 8192
# A run of letters, one digit, or one other visible character, in the dialect of the tokenizers library.
WORD = r"\p{L}+|\p{N}|\S"


def word_tokenizer(texts: Sequence[str], max_words: int = MAX_WORDS) -> Any:
    """A transformers tokenizer of lower-case words, digits and punctuation: the most frequent of ``texts``.

    Numbers 0 to 3 are ``<pad>``, ``<s>``, ``</s>`` and ``<unk>``; nothing is added around a text. The same texts give
    the same vocabulary, in whatever order they come.
    """
    sources.require("tokenizers", "transformers")
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    lower, split = normalizers.Lowercase(), pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(lower.normalize_str(text)))
    digits = [str(digit) for digit in range(10)]  # always there, so that any number can be written
    by_frequency = [word for word, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))]
    frequent = [word for word in by_frequency if word not in {*digits, *SPECIAL.values()}][:max_words]
    numbers = {word: number for number, word in enumerate([*SPECIAL.values(), *digits, *frequent])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": text for name, text in SPECIAL.items()}
    )


def byte_tokenizer(texts: Sequence[str], size: int = 8192) -> Any:
    """A transformers tokenizer of byte pairs learned from ``texts``: any text comes back as it was, line breaks too.

    Split as SmolLM2's does: a space belongs to the word behind it, digits stand alone. Special tokens are numbered and
    named as in `word_tokenizer`; the same texts in the same order give the same vocabulary.
    """
    sources.require("tokenizers", "transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=list(SPECIAL.values()), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False,
        **{f"{name}_token": text for name, text in SPECIAL.items()},
    )  # fmt: skip


def add_code_tokens(backbone: "Backbone", index: ItemIndex, seed: int = 0) -> list[Tensor]:
    """Give the model one new token for each code of ``index``; returns the token number of each, (K_l,) int64 a level.

    A new row of the embedding (and of the output layer, where that is another matrix) is the mean of the old rows plus
    noise as wide as the model's own initial weights. Old rows stay as they are. Raises InputError for a code's name
    that is a word of the model already, or is not read back as one token.
    """
    from tokenizers import AddedToken

    tokenizer, model = backbone.tokenizer, backbone.model
    taken = tokenizer.get_vocab()
    if known := [name for name in index.vocabulary if name in taken]:
        raise InputError(f"Item index: code token '{known[0]}' is already in the model's vocabulary: rename it")
    # special, or the lower-casing of tier tiny and a space before the code would change it
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in index.vocabulary])
    numbers = torch.tensor(tokenizer.convert_tokens_to_ids(list(index.vocabulary)), dtype=torch.int64)
    _check_read_back(tokenizer, index, numbers)
    if int(numbers.max()) >= model.get_input_embeddings().weight.shape[0]:  # some models have rows to spare
        model.resize_token_embeddings(int(numbers.max()) + 1, mean_resizing=False)
    noise = torch.randn(len(numbers), backbone.hidden_size, generator=torch.Generator().manual_seed(seed))
    _start_rows(backbone, numbers, noise)
    return [numbers[torch.from_numpy(of_level)] for of_level in index.token_numbers]


def start_at_centroids(
    backbone: "Backbone", index: ItemIndex, code_ids: Sequence[Tensor], vectors: np.ndarray, seed: int = 0
) -> None:
    """Let codes of alike items start alike, before any training.

    The rows of ``code_ids`` (`add_code_tokens`) become the mean of the other rows plus the mean of ``vectors`` (N, d)
    over each code's items, randomly projected, and as long as the noise would be.
    """
    numbers = torch.zeros(len(index.vocabulary), dtype=torch.int64)
    for of_level, ids in zip(index.token_numbers, code_ids, strict=True):
        numbers[torch.from_numpy(of_level)] = ids
    _start_rows(backbone, numbers, _directions(index, vectors, backbone.hidden_size, seed))


@torch.no_grad()
def _start_rows(backbone: "Backbone", numbers: Tensor, offsets: Tensor) -> None:
    """Set the rows ``numbers`` to the mean of the vocabulary's others plus ``offsets`` of unit variance, scaled."""
    model = backbone.model
    others = torch.tensor(sorted(set(backbone.tokenizer.get_vocab().values()) - set(numbers.tolist())))
    # T5's embedding starts 50 times wider than others', and says so by another name
    scale = getattr(model.config, "initializer_range", None) or getattr(model.config, "initializer_factor", None)
    done: set[int] = set()
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None and layer.weight.data_ptr() not in done:  # tied matrices are one
            weight = layer.weight
            done.add(weight.data_ptr())
            mean = weight[others[others < len(weight)].to(weight.device)].float().mean(0).cpu()
            weight[numbers.to(weight.device)] = (mean + (scale or 0.02) * offsets).to(weight)


def _check_read_back(tokenizer: Any, index: ItemIndex, numbers: Tensor) -> None:
    """Each item's code, written without separators, must come back as its tokens: names may overlap in a bad index."""
    items = np.unique(index.groups, return_index=True)[1]  # one of each code
    texts = ["".join(index.strings(item)) for item in items]
    read = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for item, text, found in zip(items, texts, read, strict=True):
        row = index.item_tokens[item]
        if found != numbers[torch.from_numpy(row[row >= 0])].tolist():
            raise InputError(f"Item index: the code '{text}' of item {item} is not read back as its own tokens")


def _directions(index: ItemIndex, vectors: np.ndarray, dim: int, seed: int) -> Tensor:
    """The centroid of each code's items, projected to (tokens, dim) float32 of unit variance."""
    if len(vectors) != index.num_items:
        raise InputError(f"Code tokens that start as centroids need a vector an item: {len(vectors)} are not "
                         f"{index.num_items}")  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(index.vocabulary), dim, generator=generator)
    features = torch.from_numpy(np.asarray(vectors, dtype=np.float32))
    features = features - features.mean(0)
    tokens = torch.from_numpy(index.item_tokens)  # (N, L)
    item, level = (tokens >= 0).nonzero(as_tuple=True)
    token = tokens[item, level]
    sums = torch.zeros(len(noise), features.shape[1]).index_add_(0, token, features[item])
    counts = torch.bincount(token, minlength=len(noise))
    projected = sums / counts.clamp_min(1)[:, None] @ torch.randn(features.shape[1], dim, generator=generator)
    length = projected.norm(dim=1, keepdim=True) / dim**0.5
    # a code without items, or whose items cancel out, has no direction
    return torch.where(length > 1e-6, projected / length.clamp_min(1e-6), noise)
