"""LightGCN: vectors of users and items by propagation over who touched what (He et al., SIGIR 2020, arXiv 2002.02126).

    genrec-bench run --method lightgcn --dataset ml-100k

E^(l+1) = D^-1/2 A D^-1/2 E^(l) over the bipartite graph of training interactions (no self loops; section 3.1); a
node's vector is the mean of layers 0..L. BPR with L2 on the layer-0 vectors of the batch (section 3.3), as in the
authors' code.

A node without interactions has no neighbours: its vector is its layer-0 vector / (L + 1), at random and moved only as a
negative. Give such items something better with `genrec_bench.methods.encoders.behaviour.with_cold_items`.

Deviation: AGRec's copy regularises the propagated vectors, by the norm and not its square; here it is as above.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from genrec_bench.methods.encoders.graph import GraphConfig, GraphEncoder, bpr_loss


class LightGCNConfig(GraphConfig):
    """AGRec's sizes, but for the width."""


class LightGCN(GraphEncoder):
    """Light graph convolution."""

    Config = LightGCNConfig

    def _step_losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        for triple in self.model.triples(rng):
            yield bpr_loss(self.model, self.model(), triple)
