"""A transformers cache with room for the tree behind the prompt. Imports transformers: import this file lazily."""

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class TreeLayer(DynamicLayer):
    """Keys and values of one layer in one buffer each: the prompt's, then ``room`` places for the tree.

    Growing by ``torch.cat`` would copy the prompt on every step. No view of a buffer is kept between calls: a compiled
    model could not write to the buffer then.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.filled = 0
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, heads, n, head_dim); returns all so far."""
        if self.buffers is None:
            self.buffers = self._buffer(key_states), self._buffer(value_states)
        start, self.filled = self.filled, self.filled + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.filled] = states
        if not start:
            return key_states, value_states
        return self.buffers[0][:, :, : self.filled], self.buffers[1][:, :, : self.filled]

    def get_seq_length(self) -> int:
        """Positions held."""
        return self.filled

    def _buffer(self, states: Tensor) -> Tensor:
        batch, heads, length, width = states.shape
        return states.new_empty(batch, heads, length + self.room, width)

    def cut(self, length: int) -> None:
        """Keep the first ``length`` positions."""
        self.filled = length


def tree_cache(layers: int, room: int) -> Cache:
    """An empty cache of ``layers`` layers with ``room`` places behind the prompt."""
    return Cache(layers=[TreeLayer(room) for _ in range(layers)])
