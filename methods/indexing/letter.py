"""LETTER's two further losses: codes that follow behaviour, and code vectors that are spread (arXiv 2405.07314).

Sources: section 3.2, equations 4 (alignment) and 5 (diversity), and the released code.
"""

import torch
from torch import Tensor
from torch.nn import functional

from genrec_bench.methods.indexing.kmeans import assign_with_room, kmeans, squared_distances


def alignment_loss(quantised: Tensor, behaviour: Tensor) -> Tensor:
    """In-batch softmax of each item's quantised vector (B, d) over all behaviour vectors (B, d), its own the target.

    Plain dot products, without temperature, as the released code.
    """
    target = torch.arange(len(quantised), device=quantised.device)
    return functional.cross_entropy(quantised @ behaviour.T, target)


def code_groups(codebooks: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Group of each code by k-means with a limit on sizes, (L, K) int64 from (L, K, d).

    Deviation: groups have at most twice their even share; the released code's k-means also has a smallest size.
    """
    codes = codebooks.shape[1]
    groups = min(groups, codes)
    room = 2 * -(-codes // groups)
    found = []
    for codebook in codebooks:
        centroids = kmeans(codebook, groups, generator, iterations=10)
        found.append(torch.from_numpy(assign_with_room(squared_distances(codebook, centroids).numpy(), room)))
    return torch.stack(found)


def diversity_loss(
    chosen: Tensor, codes: Tensor, codebooks: Tensor, groups: Tensor, generator: torch.Generator
) -> Tensor:
    """Softmax of each chosen code vector over all codes but itself, another code of its group the target; mean.

    ``chosen`` (L, B, d), ``codes`` (B, L), ``codebooks`` (L, K, d), ``groups`` (L, K). Codes alone in their group have
    no target and are left out.
    """
    losses = []
    for vectors, own, codebook, group in zip(chosen, codes.T, codebooks, groups.to(codes.device), strict=True):
        mates = group[own][:, None] == group[None, :]  # (B, K)
        mates.scatter_(1, own[:, None], False)
        paired = mates.any(1)
        if not bool(paired.any()):
            continue
        drawn = torch.rand(mates.shape, generator=generator).to(mates.device)
        target = drawn.masked_fill(~mates, -1.0).argmax(1)
        logits = vectors @ codebook.T
        logits = logits.scatter(1, own[:, None], float("-inf"))
        losses.append(functional.cross_entropy(logits[paired], target[paired]))
    return torch.stack(losses).mean() if losses else codebooks.sum() * 0.0
