"""What the decoder's tests compare with: Hugging Face's own search over a dict trie, and brute force."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from genrec_bench.methods.decoding.tokens import Prompt
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

PAD, BOS, END_ID = 0, 1, 2
SPECIALS = 5


def random_index(
    seed: int, items: int, sizes: Sequence[int], variable: bool = False, used: int | None = None
) -> ItemIndex:
    """Codes that favour low numbers, so fan-out is uneven and codes collide; ``used`` codes a level at most."""
    rng = np.random.default_rng(seed)
    columns = [np.minimum(rng.geometric(0.3, items) - 1, min(size, used or size) - 1) for size in sizes]
    codes = np.stack(columns, axis=1).astype(np.int32)
    if variable:
        lengths = rng.integers(1, len(sizes) + 1, items)
        codes[np.arange(len(sizes))[None, :] >= lengths[:, None]] = -1
    return ItemIndex(codes, level_tokens(list(sizes)))


def token_ids(index: ItemIndex, seed: int = 0) -> list[torch.Tensor]:
    """Vocabulary ids of each level's codes, scattered over a vocabulary of `vocabulary_size`."""
    mixed = np.random.default_rng(seed).permutation(sum(index.level_sizes)) + SPECIALS
    parts = np.split(mixed, np.cumsum(index.level_sizes)[:-1])
    return [torch.from_numpy(part.astype(np.int64)) for part in parts]


def vocabulary_size(index: ItemIndex) -> int:
    return sum(index.level_sizes) + SPECIALS + 3


def tiny_llama(vocabulary: int, seed: int = 0, **changes: object) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.4,
    }  # fmt: skip
    config = LlamaConfig(
        vocab_size=vocabulary, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None, **shape, **changes
    )
    return LlamaForCausalLM(config).eval()


def tiny_t5(vocabulary: int, seed: int = 0, **changes: object) -> torch.nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    shape = {
        "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "initializer_factor": 2.0,
    }  # fmt: skip
    tokens = {"pad_token_id": PAD, "eos_token_id": None, "decoder_start_token_id": PAD}
    return T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, **tokens, **(shape | changes))).eval()


def random_prompt(vocabulary: int, rows: int, length: int, ragged: bool, seed: int = 0) -> Prompt:
    """Left-padded prompts."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(SPECIALS, vocabulary, (rows, length), generator=generator)
    if not ragged:
        return Prompt(tokens)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    mask = torch.arange(length) >= length - lengths
    return Prompt(tokens.masked_fill(~mask, PAD), mask)


def dict_trie(index: ItemIndex, ids: Sequence[torch.Tensor]) -> dict[tuple[int, ...], list[int]]:
    """Allowed next tokens after each prefix of tokens, as the generative methods' own code bases keep them."""
    following: dict[tuple[int, ...], set[int]] = {}
    for code in index.codes.tolist():
        path = [int(ids[level][c]) for level, c in enumerate(code) if c >= 0]
        if len(path) < index.num_levels:
            path.append(END_ID)
        for place, token in enumerate(path):
            following.setdefault(tuple(path[:place]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in following.items()}


def generate(model, prompt: Prompt, index: ItemIndex, ids, width: int, **options):
    """``generate`` with the settings our search equals; the generated tokens (B, W, L) and scores (B, W)."""
    start = 1 if model.config.is_encoder_decoder else prompt.tokens.shape[1]
    mask = torch.ones_like(prompt.tokens) if prompt.mask is None else prompt.mask.long()
    with torch.inference_mode():
        out = model.generate(
            prompt.tokens, attention_mask=mask, num_beams=width, num_return_sequences=width,
            max_new_tokens=index.num_levels, length_penalty=0.0, early_stopping="never", do_sample=False,
            eos_token_id=END_ID if index.variable else None, pad_token_id=PAD, return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
    tokens = out.sequences[:, start:]
    tokens = torch.nn.functional.pad(tokens, (0, index.num_levels - tokens.shape[1]), value=PAD)
    batch = len(prompt.tokens)
    return tokens.view(batch, width, -1), out.sequences_scores.view(batch, width)


def callback(index: ItemIndex, ids, start: int):
    """The dict trie as ``prefix_allowed_tokens_fn``; a beam that left the trie may only pad."""
    following = dict_trie(index, ids)

    def allowed(_row: int, tokens: torch.Tensor) -> list[int]:
        return following.get(tuple(tokens[start:].tolist()), [PAD])

    return allowed


def hugging_face(model, prompt: Prompt, index: ItemIndex, ids, width: int, renormalise: bool = False):
    """Per row the found codes (tuples without the end) and scores, by ``generate`` with a callback."""
    start = 1 if model.config.is_encoder_decoder else prompt.tokens.shape[1]
    found = generate(
        model, prompt, index, ids, width, prefix_allowed_tokens_fn=callback(index, ids, start),
        renormalize_logits=renormalise,
    )  # fmt: skip
    return named(*found, index, ids)


def named(tokens, scores, index: ItemIndex, ids) -> list[list[tuple[tuple[int, ...], float]]]:
    """Generated tokens as codes; what has a score of a search without candidates is left out."""
    code_of = [{int(token): code for code, token in enumerate(level)} for level in ids]
    rows = []
    for row_tokens, row_scores in zip(tokens.tolist(), scores.tolist(), strict=True):
        row = []
        for path, score in zip(row_tokens, row_scores, strict=True):
            if score > -1e8 and math.isfinite(score):
                path = path[: path.index(END_ID)] if END_ID in path else path
                row.append((tuple(code_of[level][token] for level, token in enumerate(path)), score))
        rows.append(row)
    return rows


def ours(beams, trie, index: ItemIndex) -> list[list[tuple[tuple[int, ...], float]]]:
    """Found leaves as codes with scores."""
    starts, items = trie.starts[-1], trie.items
    rows = []
    for leaves, scores in zip(beams.leaves.tolist(), beams.scores.tolist(), strict=True):
        assert all((leaf < 0) == (score == -math.inf) for leaf, score in zip(leaves, scores, strict=True))
        row = [(int(items[starts[leaf]]), score) for leaf, score in zip(leaves, scores, strict=True) if leaf >= 0]
        rows.append([(tuple(c for c in index.codes[item].tolist() if c >= 0), score) for item, score in row])
    return rows


def assert_same(found, expected, tolerance: float = 1e-5) -> None:
    assert [[code for code, _ in row] for row in found] == [[code for code, _ in row] for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for (_, a), (_, b) in zip(mine, theirs, strict=True):
            assert abs(a - b) <= tolerance * max(1.0, abs(b)), (a, b)


class Bag:
    """A `TokenModel` in plain torch: a hidden state is a squashed sum over the prompt and the tokens it sees."""

    def __init__(self, vocabulary: int, dim: int = 8, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(vocabulary, dim, generator=generator)
        self.head = 2 * torch.randn(vocabulary, dim, generator=generator)
        self.vocabulary_size = vocabulary

    def start(self, prompt: Prompt, room: int):
        real = 1.0 if prompt.mask is None else prompt.mask.unsqueeze(-1)
        summed = (self.embedding[prompt.tokens] * real).sum(1)
        return torch.tanh(summed), {"prompt": summed, "tree": self.embedding[:0].expand(len(summed), 0, -1)}

    def extend(self, state, tokens, depth, visible):
        state["tree"] = torch.cat([state["tree"], self.embedding[tokens]], dim=1)
        return torch.tanh(state["prompt"].unsqueeze(1) + visible.float() @ state["tree"])

    def rewind(self, state):
        state["tree"] = state["tree"][:, :0]

    def logits(self, hidden, tokens):
        return hidden @ (self.head if tokens is None else self.head[tokens]).T

    def next_logits(self, prompt: list[int], path: list[int]) -> torch.Tensor:
        return self.head @ torch.tanh(self.embedding[prompt].sum(0) + self.embedding[path].sum(0))


def next_logits_of(model, prompt: list[int], path: list[int]) -> torch.Tensor:
    """Logits (V,) of the token after ``path``, by one plain forward of a Hugging Face model or by `Bag`."""
    if isinstance(model, Bag):
        return model.next_logits(prompt, path)
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            out = model(torch.tensor([prompt]), decoder_input_ids=torch.tensor([[PAD, *path]]))
        else:
            out = model(torch.tensor([[*prompt, *path]]))
    return out.logits[0, -1].float()


def brute_force(model, prompt: Prompt, index: ItemIndex, ids, normalise: str, mix=None) -> torch.Tensor:
    """Log-probability (B, N) of every item's code, prefix by prefix. ``mix(row, prefix, tokens, log_probs)`` changes
    the log-probabilities of a prefix's allowed tokens."""
    following = dict_trie(index, ids)
    code_of = [{int(token): code for code, token in enumerate(level)} for level in ids]
    scores = torch.zeros(len(prompt.tokens), index.num_items)
    for row, tokens in enumerate(prompt.tokens):
        real = tokens if prompt.mask is None else tokens[prompt.mask[row]]
        steps: dict[tuple[int, ...], dict[int, float]] = {}
        for prefix, allowed in following.items():
            logits = next_logits_of(model, real.tolist(), list(prefix))
            end = [END_ID] if index.variable and prefix else []
            over = {"vocabulary": slice(None), "level": ids[len(prefix)].tolist() + end, "trie": allowed}[normalise]
            log_probs = logits[allowed] - logits[over].logsumexp(0)
            if mix is not None:
                codes = tuple(code_of[level][token] for level, token in enumerate(prefix))
                log_probs = mix(row, codes, allowed, log_probs)
            steps[prefix] = dict(zip(allowed, log_probs.tolist(), strict=True))
        for item, code in enumerate(index.codes.tolist()):
            path = [int(ids[level][c]) for level, c in enumerate(code) if c >= 0]
            path += [END_ID] if len(path) < index.num_levels else []
            scores[row, item] = sum(steps[tuple(path[:place])][token] for place, token in enumerate(path))
    return scores


def exact_lists(scores: torch.Tensor, index: ItemIndex, k: int, order=None, allowed=None) -> list[list[int]]:
    """Items by falling score, equal scores by code, then ``order``, then number; of each row's ``allowed`` only."""
    order = range(index.num_items) if order is None else order
    lists = []
    for row, row_scores in enumerate(scores.tolist()):
        items = range(index.num_items) if allowed is None else sorted(allowed[row])
        ranked = sorted(items, key=lambda i: (-row_scores[i], index.groups[i], order[i], i))
        lists.append(ranked[:k])
    return lists
