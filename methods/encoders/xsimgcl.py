"""XSimGCL: LightGCN with noise in each layer; vectors must agree with one layer (Yu et al., arXiv 2209.02544).

    genrec-bench run --method xsimgcl --dataset ml-100k

One pass a step: after each propagation E^(l) += sign(E^(l)) * u * eps, u a random direction with no negative component,
of length 1 for each node; a node's vector is the mean of layers 1..L, layer 0 left out. InfoNCE asks that it be nearer
to its own layer ``contrast_layer`` of the same noisy pass than to other nodes' of the batch. loss = BPR on the noisy
vectors + weight (InfoNCE of the batch's users + InfoNCE of its positive items). No noise at evaluation.

Deviation: three layers by default; AGRec's sample config has one, where both views are the same vector.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional

from genrec_bench.methods.encoders.graph import GraphConfig, GraphEncoder, GraphModel, bpr_loss, info_nce
from genrec_bench.methods.encoders.propagation import step


class XSimGCLConfig(GraphConfig):
    """AGRec's sample config, but for layers and width."""

    layers: PositiveInt = 3
    eps: NonNegativeFloat = 0.2  # length of each layer's noise
    contrast_layer: PositiveInt = 1  # the layer that the mean of all is compared with
    temperature: PositiveFloat = 0.15  # of the agreement
    weight: NonNegativeFloat = 0.01  # of the agreement, lambda in the paper

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        **GraphConfig.search_space,
        "layers": [2, 3],
        "eps": [0.05, 0.1, 0.2],
        "temperature": [0.1, 0.15, 0.2],
        "weight": [0.003, 0.01, 0.05, 0.2],
    }

    @model_validator(mode="after")
    def _views_differ(self) -> "XSimGCLConfig":
        if self.layers < 2:
            raise ValueError(f"layers={self.layers} makes both views the same vector, layer 1: use 2 or more")
        if self.contrast_layer > self.layers:
            raise ValueError(f"contrast_layer={self.contrast_layer} must not exceed layers={self.layers}")
        return self


class XSimGCL(GraphEncoder):
    """Extremely simple graph contrastive learning."""

    Config = XSimGCLConfig
    first_layer = 1

    def _step_losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        model, config = self.model, self.config
        random = torch.Generator(model.layer0.device).manual_seed(int(rng.integers(2**62)))
        for triple in model.triples(rng):
            layers = noisy_layers(model, config.eps, random)
            final = model.split(sum(layers[1:], layers[0]) / len(layers))
            contrast = model.split(layers[config.contrast_layer - 1])
            users, items = (
                info_nce(one, other, rows, config.temperature)
                for one, other, rows in zip(final, contrast, triple[:2], strict=True)
            )
            yield bpr_loss(model, final, triple) + config.weight * (users + items)


def noisy_layers(model: GraphModel, eps: float, random: torch.Generator) -> list[Tensor]:
    """Layers 1..L with noise, (nodes, dim) each; a node without neighbours is zero and stays so."""
    layer: Tensor = model.layer0
    layers: list[Tensor] = []
    for _ in range(model.config.layers):
        layer = step(model.product, layer)
        with torch.no_grad():
            noise = functional.normalize(torch.rand(layer.shape, generator=random, device=layer.device), dim=1)
            noise *= layer.sign()
        layer = layer.add(noise, alpha=eps)
        layers.append(layer)
    return layers
