"""Random numbers of a part's own, so that what is drawn around it does not depend on whether the part was made now."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch draws from ``seed`` inside, on the host and on this process's GPU; afterwards both go on as before."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield
