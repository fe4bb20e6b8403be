"""A transformers cache with room for the tree behind the prompt. Imports transformers: import this file lazily."""

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class TreeLayer(DynamicLayer):
    """Keys and values of one layer in one buffer each: the prompt's, then ``room`` places for the tree.

    Growing by ``torch.cat`` would copy the prompt on every step.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, heads, n, head_dim); returns all so far."""
        filled = self.get_seq_length()
        if self.buffers is None:
            self.lazy_initialization(key_states, value_states)
            self.buffers = self._buffer(key_states), self._buffer(value_states)
        end = filled + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, filled:end] = states
        self.keys, self.values = self.buffers[0][:, :, :end], self.buffers[1][:, :, :end]
        return (self.keys, self.values) if filled else (key_states, value_states)

    def _buffer(self, states: Tensor) -> Tensor:
        batch, heads, length, width = states.shape
        return states.new_empty(batch, heads, length + self.room, width)

    def cut(self, length: int) -> None:
        """Keep the first ``length`` positions."""
        assert self.buffers is not None
        self.keys, self.values = self.buffers[0][:, :, :length], self.buffers[1][:, :, :length]


def tree_cache(layers: int, room: int) -> Cache:
    """An empty cache of ``layers`` layers with ``room`` places behind the prompt."""
    return Cache(layers=[TreeLayer(room) for _ in range(layers)])
