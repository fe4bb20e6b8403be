"""The precision of matrix products: bfloat16 where the processor computes it, else float32.

A processor without such products emulates them: on x86 with AVX2 alone a layer under autocast takes 5 times as long as
in float32, and a bare product 70 times.
"""

from functools import cache

import torch


@cache
def product_dtype(low: bool, device: str) -> torch.dtype:
    """What ``device`` ("cpu", "cuda", "cuda:1") multiplies in where ``low`` precision is allowed."""
    return torch.bfloat16 if low and _has_bfloat16(device.partition(":")[0]) else torch.float32


def products(low: bool, device: str) -> torch.autocast:
    """A context whose matrix products are computed in `product_dtype`."""
    dtype = product_dtype(low, device)
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=dtype == torch.bfloat16)


def _has_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":  # also true with AVX512 alone, where oneDNN converts on the fly
        return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True
