"""The trie for any Hugging Face model: a logits processor for ``generate``. Imports transformers: import it lazily.

For models that have no adapter here. `beam_search` gives the same lists in a fraction of the time: ``generate`` copies
the cache for every beam and computes the whole vocabulary; this processor removes only the Python loop over rows that
``prefix_allowed_tokens_fn`` runs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from genrec_bench.methods.decoding.tokens import CodeTokens
from genrec_bench.methods.decoding.trie import END, ItemTrie


class TrieLogitsProcessor(LogitsProcessor):
    """Leaves only tokens that go on towards an item; scores of the others become -inf.

    ``prompt_length``: tokens of ``input_ids`` that are not generated (1 for encoder-decoder models). ``token_ids`` and
    ``end_id``: see `CodeTokens`. A beam that is no prefix of an item (`generate` keeps such where items are fewer than
    beams) and one whose code is complete may only go on with ``pad_id``.
    """

    def __init__(
        self,
        trie: ItemTrie,
        token_ids: Sequence[Tensor],
        prompt_length: int,
        end_id: int | None = None,
        pad_id: int = 0,
    ):
        self.trie, self.prompt_length, self.pad_id = trie, prompt_length, pad_id
        self.tokens = CodeTokens(trie, token_ids, end_id, trie.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` (R, t) int64 and ``scores`` (R, V), as ``generate`` hands them over; (R, V)."""
        generated = input_ids[:, self.prompt_length :]
        level = generated.shape[1]
        nodes = torch.zeros(len(generated), dtype=torch.int64, device=scores.device)
        ended = torch.zeros_like(nodes, dtype=torch.bool)
        for depth in range(min(level, self.trie.num_levels)):
            places, known = self.tokens.find(depth, generated[:, depth])
            codes = self.tokens.codes(depth, places)
            ended |= codes == END
            nodes = torch.where(known & ~ended, self.trie.descend(depth, nodes, codes), -1)
        allowed = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
        if level < self.trie.num_levels:
            codes, _, real = self.trie.children(level, nodes)
            ids = self.tokens.levels[level][self.tokens.places(level, codes)]
            allowed.scatter_(1, torch.where(real, ids, scores.shape[1]), True)  # the spare column is cut off
            allowed[:, self.pad_id] |= nodes < 0
        else:
            allowed[:, self.pad_id] = True
        return scores.masked_fill(~allowed[:, :-1], -torch.inf)
