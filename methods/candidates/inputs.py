"""What a prompt holds beside text, as input embeddings: markers, item identifiers, projected item vectors.

Source: RSLLM (section 4.1.2, eq. 1): e_b = Proj(E_k), E the item table of a recommender, kept as it is; Proj a
perceptron of two layers. LLaRA's released code puts a GELU between them.
Deviation: the table is divided by the root of its mean square, and the projector starts with outputs as wide as the
model's embeddings; tables of different recommenders differ tenfold in width.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.decoding.causal import additive
from genrec_bench.methods.decoding.tokens import unwrapped
from genrec_bench.methods.seeding import seeded


class ItemInputs(nn.Module):
    """Embeddings (n, h) of the numbers below 0 of a prompt (`genrec_bench.methods.candidates.prompts`).

    ``table`` (N, d), frozen; with ``learned`` it is trained instead. None: no prompt holds vectors. With
    ``identifiers`` each of the items has a row for [IID k]. New rows start as the mean of ``like`` (V, h), the model's
    embeddings, plus noise of their width.
    """

    table: Tensor

    def __init__(
        self, like: Tensor, table: np.ndarray | None, *, items: int, identifiers: bool, learned: bool, seed: int
    ):
        super().__init__()
        with seeded(seed), torch.no_grad():
            rows = like.detach().float().cpu()
            mean, width = rows.mean(0), float(rows.std())
            self.markers = nn.Parameter(mean + width * torch.randn(2, len(mean)))
            self.identifiers = nn.Parameter(mean + width * torch.randn(items, len(mean))) if identifiers else None
            self.projector: nn.Sequential | None = None
            if table is not None:
                values = torch.from_numpy(np.asarray(table, dtype=np.float32))
                values = values / values.square().mean().sqrt().clamp_min(1e-12)
                if learned:
                    self.table = nn.Parameter(values)
                else:
                    self.register_buffer("table", values)
                size = len(mean)
                last = nn.Linear(size, size)
                self.projector = nn.Sequential(nn.Linear(values.shape[1], size), nn.GELU(), last)
                last.weight.mul_(width / self.projector(values).std().clamp_min(1e-12))
                last.bias.copy_(mean)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n,) int64, all below 0 -> (n, h)"""
        found = self.markers[(-1 - tokens).clamp(max=1)]
        item, kind = (-3 - tokens).div(2, rounding_mode="floor"), (-3 - tokens).remainder(2)
        special = tokens <= -3
        for wanted, embed in ((0, self._identifier), (1, self._vector)):
            at = (special & (kind == wanted)).nonzero()[:, 0]
            if len(at):
                found = found.index_copy(0, at, embed(item[at]).to(found.dtype))
        return found

    def _identifier(self, items: Tensor) -> Tensor:
        assert self.identifiers is not None
        return self.identifiers[items]

    def _vector(self, items: Tensor) -> Tensor:
        assert self.projector is not None
        projected: Tensor = self.projector(self.table[items])
        return projected


class PromptedModel(nn.Module):
    """A causal language model, bare or with peft's adapters, that reads `Row.tokens`."""

    def __init__(self, lm: Any, inputs: ItemInputs):
        super().__init__()
        self.lm, self.inputs = lm, inputs

    def get_base_model(self) -> Any:
        """The Hugging Face model itself; adapters stay active."""
        return unwrapped(self.lm)

    @property
    def device(self) -> torch.device:
        return self.inputs.markers.device

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, P) int64 -> (B, P, h)"""
        embedded: Tensor = self.get_base_model().get_input_embeddings()(tokens.clamp(min=0))
        at = (tokens < 0).flatten().nonzero()[:, 0]
        if not len(at):
            return embedded
        own = self.inputs(tokens.flatten()[at]).to(embedded.dtype)
        return embedded.flatten(0, 1).index_copy(0, at, own).view(embedded.shape)

    def states(self, tokens: Tensor) -> Tensor:
        """Last hidden states (B, P, h) of right-padded ``tokens`` (B, P), each seeing those before it."""
        bare, device = self.get_base_model(), tokens.device
        kind = device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else bare.dtype
        length = tokens.shape[1]
        earlier = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()
        embedded = self.embed(tokens)
        mask = additive(earlier, dtype).expand(len(tokens), 1, length, length)
        positions = torch.arange(length, device=device).expand(len(tokens), length)
        decoder = bare.get_decoder()
        out = decoder(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False)
        hidden: Tensor = out.last_hidden_state
        return hidden


def read_table(path: str, num_items: int) -> np.ndarray:
    """An item table (N, d) from a ``.npy`` file. Raises InputError where it is not one of ``num_items`` items."""
    if not Path(path).is_file():
        raise InputError(f"Item table {path}: no such file")
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"Item table {path}: not a .npy file: {str(error).splitlines()[0]}") from None
    if table.ndim != 2 or not table.shape[-1] or not np.issubdtype(table.dtype, np.number):
        raise InputError(f"Item table {path}: {table.dtype} of shape {table.shape}; a row of numbers an item is needed")
    if len(table) != num_items:
        raise InputError(f"Item table {path}: {len(table)} rows, but the data set has {num_items} items")
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        raise InputError(f"Item table {path}: row {row} holds NaN or infinity")
    return np.asarray(table, dtype=np.float32)
