"""Next-item losses over P positions and N items that never hold more than one chunk of the (P, N) logits.

`full_softmax` computes the gradient while it computes the loss: one product for the logits, one softmax, two products
for the gradients, and nothing of size (P, N) is kept for a backward pass. benchmarks/softmax_loss.py times it against
``cross_entropy(hidden @ table.T)``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_LOGITS = 6_000_000  # logits at a time: 12 MB in bf16 stay in the last-level cache


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        positions, chunk = len(hidden), max(CHUNK_LOGITS // len(table), 64)
        low_hidden, low_table = hidden.to(dtype), table.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_table = torch.zeros_like(table)
        loss = hidden.new_zeros(())
        for start in range(0, positions, chunk):
            rows = slice(start, start + chunk)
            target = targets[rows, None]
            p = torch.softmax(low_hidden[rows] @ low_table.T, dim=1)  # (chunk, N)
            p_target = p.gather(1, target)
            loss -= p_target.float().clamp_min(1e-30).log().sum()
            p.scatter_(1, target, p_target - 1)  # gradient of the summed loss with respect to the logits
            grad_hidden[rows] = p @ low_table
            grad_table += p.T @ low_hidden[rows]
        ctx.save_for_backward(grad_hidden / positions, grad_table / positions)
        return loss / positions

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_table = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_table * grad_outputs[0], None, None


def full_softmax(hidden: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean cross-entropy of ``hidden @ table.T`` over the whole catalogue.

    hidden: (P, d) float32; table: (N, d) float32; targets: (P,) int64; ``dtype`` is that of the matrix products.
    """
    loss: Tensor = _FullSoftmax.apply(hidden, table, targets, dtype)
    return loss


def sampled_softmax(hidden: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Mean cross-entropy of each target against K uniform negatives shared by all positions.

    negatives: (K,) int64. A negative that equals a position's target is left out for that position.
    """
    positive = (hidden * table[targets]).sum(1, keepdim=True)  # (P, 1)
    negative = hidden @ table[negatives].T  # (P, K)
    negative = negative.masked_fill(negatives[None, :] == targets[:, None], float("-inf"))
    return functional.cross_entropy(torch.cat([positive, negative], 1), torch.zeros_like(targets))


def binary(hidden: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Binary cross-entropy with one uniform negative a position (SASRec, Kang and McAuley 2018, eq. 6).

    negatives: (P,) int64.
    """
    positive = (hidden * table[targets]).sum(1)
    negative = (hidden * table[negatives]).sum(1)
    return -(functional.logsigmoid(positive) + functional.logsigmoid(-negative)).mean()
