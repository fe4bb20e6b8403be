"""One model trained by several processes: gradients added up, and, where asked, the layers' weights spread over them.

Everything here does nothing in a process of its own. Sharding is torch's FSDP2 (`fully_shard`): a process holds a part
of each layer's weights, of their gradients and of the optimiser's numbers, and gathers a layer where it is computed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.distributed import add_up, rank, world_size


class SharedWeights:
    """The trained weights of a model: ``parts``, by name, is what this process steps on.

    That is the model's own parameter, or, of a sharded one, the part that lies in this process: a plain tensor in the
    same memory, so that optimiser, averages and copies need not know.
    """

    def __init__(self, model: nn.Module):
        self._weights: dict[str, Any] = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.parts: dict[str, nn.Parameter] = {
            name: nn.Parameter(value.detach().to_local()) if _is_sharded(value) else value
            for name, value in self._weights.items()
        }
        self.sharded = [name for name, value in self._weights.items() if _is_sharded(value)]
        self._whole = [part for name, part in self.parts.items() if not _is_sharded(self._weights[name])]

    def forget_gradients(self) -> None:
        """Before a step's first backward pass."""
        for value in (*self._weights.values(), *self.parts.values()):
            value.grad = None

    def collect(self, loss: Tensor) -> None:
        """Make each part's gradient, and ``loss``, the sum over the processes."""
        if world_size() == 1:
            return
        for name in self.sharded:
            if (gradient := self._weights[name].grad) is not None:
                self.parts[name].grad = gradient.to_local().mul_(world_size())  # FSDP has left the mean
        learned = torch.tensor([float(part.grad is not None) for part in self._whole], device=loss.device)
        for part in self._whole:
            if part.grad is None:  # nothing to learn in this process's rows
                part.grad = torch.zeros_like(part)
        add_up([loss, learned, *_gradients(self._whole)])
        for part, count in zip(self._whole, learned.tolist(), strict=True):
            if not count:  # nor in any other's: the optimiser leaves it alone, as in a process of its own
                part.grad = None

    def clip(self, most: float) -> None:
        """Cut the gradients to a norm of ``most``, that of all parts of all processes."""
        if not self.sharded:
            nn.utils.clip_grad_norm_(list(self.parts.values()), most, foreach=True)
            return
        spread, whole = _gradients(self.parts[name] for name in self.sharded), _gradients(self._whole)
        squares = _square(spread)
        distributed.all_reduce(squares)
        norm = (squares + _square(whole) if whole else squares).sqrt()  # adapters of the layers alone: all is spread
        torch._foreach_mul_([*spread, *whole], (most / (norm + 1e-6)).clamp(max=1.0))

    def gathered(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from their parts, for rank 0 to save (on the host); every process must ask."""
        return {name: self._gather(name, part) for name, part in parts.items()}

    def spread(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts of whole tensors that lie in this process, on its device."""
        return {name: self._cut(name, saved[name]) for name in self.parts}

    def gathered_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """`gathered` for an optimiser of the parts."""
        return _changed(optimiser.state_dict(), self._names(optimiser), self._gather)

    def spread_state(self, optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        """Put what `gathered_state` gave into an optimiser of the parts."""
        optimiser.load_state_dict(_changed(saved, self._names(optimiser), self._cut))

    def _names(self, optimiser: torch.optim.Optimizer) -> list[str]:
        names = {id(part): name for name, part in self.parts.items()}
        return [names[id(part)] for group in optimiser.param_groups for part in group["params"]]

    def _gather(self, name: str, part: Tensor) -> Tensor:
        weight = self._weights[name]
        if not _is_sharded(weight):
            return part.detach()
        from torch.distributed.tensor import DTensor

        layout = {"shape": weight.shape, "stride": weight.stride(), "run_check": False}
        whole = DTensor.from_local(part.detach(), weight.device_mesh, weight.placements, **layout).full_tensor()
        return whole.cpu() if rank() == 0 else whole.new_empty(0)

    def _cut(self, name: str, whole: Tensor) -> Tensor:
        weight = self._weights[name]
        if not _is_sharded(weight):
            return whole.to(weight.device)
        from torch.distributed.tensor import distribute_tensor

        # every process has read the whole tensor: none has to be sent
        return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to_local()


def share(model: nn.Module, sharding: bool, bf16: bool) -> Callable[[], None]:
    """Give all processes rank 0's weights, with ``sharding`` a part of them; returns what makes the model whole again.

    Weights that learn are float32, whatever they were: a small step does not move a bfloat16 number. Sharded ones are
    gathered as bfloat16 numbers with ``bf16``. What is no layer (embedding, output, last norm) stays whole in every
    process: the loss reads its weights directly.
    """
    if world_size() > 1:
        for value in (*model.parameters(), *model.buffers()):
            distributed.broadcast(value.data, src=0)
        if sharding:
            return _shard(model, bf16)
    types = {name: value.dtype for name, value in model.named_parameters()}
    _learn_in_float32(model.parameters())

    def as_before() -> None:
        for name, value in model.named_parameters():
            value.data = value.data.to(types[name])

    return as_before


def _shard(model: nn.Module, bf16: bool) -> Callable[[], None]:
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    stacks = list(_stacks(model))
    if len(stacks) != 1:  # decoding with an encoder-decoder reads weights of its layers directly
        kind = type(model).__name__
        raise InputError(f"sharding=true needs a decoder-only model, with one list of layers; {kind} has {len(stacks)}")
    stack, layers = stacks[0]
    types = {name: value.dtype for name, value in model.named_parameters()}
    before = [(module, type(module), _state(module)) for module in (*layers, stack)]
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    used = torch.bfloat16 if bf16 else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=used, reduce_dtype=torch.float32)
    for layer in layers:
        _learn_in_float32(layer.parameters())
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    whole = {value for value in stack.parameters() if not _is_sharded(value)}
    fully_shard(stack, mesh=mesh, ignored_params=whole)  # fetches the next layer while one is computed
    for module in (stack, *layers):  # makes their buffers: training could not use those made in inference mode
        module.unshard()  # type: ignore[operator]
        module.reshard()  # type: ignore[operator]
    _learn_in_float32(value for value in model.parameters() if not _is_sharded(value))

    def whole_again() -> None:
        for name, value in list(model.named_parameters()):
            if _is_sharded(value):
                owner, _, leaf = name.rpartition(".")
                whole = value.full_tensor().to(types[name])  # type: ignore[attr-defined]
                setattr(model.get_submodule(owner), leaf, nn.Parameter(whole, requires_grad=value.requires_grad))
            else:
                value.data = value.data.to(types[name])
        for module, kind, state in before:  # torch has no way back from fully_shard, and no second fully_shard without
            _module_state_mapping.pop(module)
            module.__class__ = kind
            for name in vars(module).keys() - state.keys():
                delattr(module, name)
            module.__dict__.update(state)

    return whole_again


def _stacks(module: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Modules that run a list of layers, and the layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield module, list(child)
        else:
            yield from _stacks(child)


def _state(module: nn.Module) -> dict[str, Any]:
    """What a module is besides its class; its hooks, to which others are added, in copies."""
    return {name: value.copy() if name.endswith("hooks") else value for name, value in vars(module).items()}


def _learn_in_float32(weights: Iterable[nn.Parameter]) -> None:
    for value in weights:
        if value.requires_grad:
            value.data = value.data.float()


def _is_sharded(value: Tensor) -> bool:
    return hasattr(value, "device_mesh")  # a DTensor, whose module takes a while to import


def _gradients(parts: Iterable[nn.Parameter]) -> list[Tensor]:
    return [part.grad for part in parts if part.grad is not None]


def _square(gradients: list[Tensor]) -> Tensor:
    """The squared norm of all of them together."""
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


def _changed(state: dict[str, Any], names: list[str], change: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    """An optimiser's state with ``change`` made to what it holds a number for each weight of."""
    entries = {
        number: {key: change(names[number], value) if value.ndim else value for key, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}
