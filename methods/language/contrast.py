"""EAGER-LLM's global contrast decompression task (arXiv 2502.14735, section 3.3): dense vectors back into few codes.

After each item that is learned stands [CON], an aside: it sees the item and all before it, no token sees it, and it has
no row in the vocabulary. Its hidden state, through one projector for each source, is pulled to the item's source vector
and away from those of the batch's other items. All of it is dropped after training.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from genrec_bench.methods.language.batches import Asides
from genrec_bench.methods.seeding import seeded


class GlobalContrast(nn.Module):
    """Weighted InfoNCE of [CON] against each of ``sources``: (name, weight, vectors (N, d)) of the catalogue.

    For an aside of item i and each source: -log exp(cos(f(g), z_i) / tau) / sum_j exp(cos(f(g), z_j) / tau) over the
    items j of the batch, i itself once. The source vectors are constants, so that the batch's items are all that
    micro-batches and devices must share: no states have to be gathered, no gradients cached.
    """

    def __init__(self, sources: list[tuple[str, float, np.ndarray]], width: int, temperature: float, seed: int):
        super().__init__()
        self.temperature = temperature
        self.weights = {name: weight for name, weight, _ in sources}
        with seeded(seed):
            self.token = nn.Parameter(0.02 * torch.randn(width))
            self.projectors = nn.ModuleDict(
                {
                    name: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, vectors.shape[1]))
                    for name, _, vectors in sources
                }
            )
        for name, _, vectors in sources:
            unit = functional.normalize(torch.from_numpy(np.asarray(vectors, dtype=np.float32)), dim=1)
            self.register_buffer(f"vectors_{name}", unit, persistent=False)

    def forward(self, states: Tensor, asides: Asides) -> Tensor:
        """The summed loss of ``states`` (A, h), the hidden states at the batch's asides."""
        items, counts = asides.pool.unique(return_counts=True)
        own = torch.searchsorted(items, asides.items)  # (A,) column of each aside's item
        # an item that the batch has n times is n negatives of the others, and one positive of its own
        often = counts.float().log().repeat(len(own), 1).scatter_(1, own[:, None], 0.0)  # (A, items)
        total = states.new_zeros((), dtype=torch.float32)
        with torch.autocast(states.device.type, enabled=False):  # the temperature magnifies what bf16 rounds off
            for name, project in self.projectors.items():
                queries = functional.normalize(project(states.float()), dim=1)
                logits = queries @ self.get_buffer(f"vectors_{name}")[items].T / self.temperature + often
                total = total + self.weights[name] * functional.cross_entropy(logits, own, reduction="sum")
        return total
