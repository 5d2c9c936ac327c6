"""How the blocks of a model are run when some keep their attention, or keep what they keep on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, noop_context_fn

from evocore.backend import Backend
from evocore.config.schema import Config
from evocore.nn.blocks import first_of_each
from evocore.parallel.activations.host import HostCopies, Item, Parcel
from evocore.parallel.activations.selective import AttentionFunction, KeptAttention, keep_here


@dataclass(frozen=True)
class ActivationOptions:
    """What blocks keep, and where.

    Attributes:
        keeps_attention: recomputed blocks compute attention once.
        attention_on_host: what they keep of it is on the host.
        blocks_on_host: all that these blocks keep is on the host: of a recomputed one its inputs, and its attention
            if that is kept.
    """

    keeps_attention: bool = False
    attention_on_host: bool = False
    blocks_on_host: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config: Config, chunks: Sequence[range] = ()) -> ActivationOptions:
        """What a checked config asks for.

        Args:
            chunks: of all pipeline stages, if the model is cut: each moves its share, like its recomputed blocks.
        """
        layers, moved = config.model.num_layers, config.cpu_offloading
        return cls(
            config.selective_checkpoint,
            config.selective_checkpoint_offload,
            first_of_each(moved.num_layers if moved.enable else 0, layers, chunks or [range(layers)]),
        )


class ActivationMemory:
    """Runs a model's blocks so that they keep what the options say.

    On the device are, besides what stays there, at most what two blocks keep: in forward that of the block before is
    on its way to the host while a block computes, in backward that of the block to come is on its way back. What has
    not left when its backward begins, as of the last block before the loss, does not leave. Compute waits where the
    way takes longer than a block.

    Args:
        backend: whose streams and pinned memory the copies use.
        device: of the model.
    """

    def __init__(self, backend: Backend, device: torch.device, options: ActivationOptions) -> None:
        self._options, self._device = options, device
        moves = options.attention_on_host or bool(options.blocks_on_host)
        self._copies = HostCopies(backend, device) if moves else None
        self._attention = KeptAttention() if options.keeps_attention else None
        self._here: Parcel | None = None  # of the last block that ran, unless its backward has used it up
        self._before: Parcel | None = None  # of the block before in the same pass

    def connect(self, model: nn.Module) -> None:
        """Run the blocks of a model from now on.

        Raises:
            TypeError: if the model runs its blocks by itself.
        """
        if self._copies is None and self._attention is None:
            return
        if not hasattr(model, "run_block"):
            raise TypeError(f"{type(model).__name__} has no run_block (evocore.nn.blocks) to replace")
        model.run_block = self.run_block  # type: ignore[assignment]
        model.register_forward_pre_hook(self._begin_pass)

    def wrap_attention(self, function: AttentionFunction) -> AttentionFunction:
        """As the contract of ``attention``, for all attention of the model."""
        return function if self._attention is None else self._attention.wrap(function)

    def run_block(
        self,
        block: nn.Module,
        activations: tuple[Tensor | None, ...],
        shared: tuple[Any, ...],
        *,
        layer: int,
        recomputed: bool,
    ) -> Any:
        """As ``evocore.nn.blocks.RunBlock``; the first thing that a block returns leads to all that it has kept."""
        if not torch.is_grad_enabled():
            return block(*activations, *shared)
        leaving, self._here = self._here, None
        if leaving is not None:
            leaving.depart()
        moves = layer in self._options.blocks_on_host
        keeps = self._attention is not None and recomputed
        parcel = self._parcel() if moves or (keeps and self._options.attention_on_host) else None
        with _moved(parcel, block, shared, self._device) if moves and parcel is not None else nullcontext():
            if recomputed:
                outputs = self._recomputed(block, (*activations, *shared), parcel)
            else:
                outputs = block(*activations, *shared)
        if leaving is not None:
            leaving.land()
        if parcel is not None:
            parcel.close()
        self._watch(outputs[0], parcel)
        return outputs

    def _parcel(self) -> Parcel:
        assert self._copies is not None
        return Parcel(self._copies)

    def _recomputed(self, block: nn.Module, inputs: Sequence[Any], parcel: Parcel | None) -> Any:
        contexts: Callable[[], Any] = noop_context_fn
        if self._attention is not None:
            contexts = partial(self._attention.contexts, keep_here if parcel is None else parcel.put)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    def _watch(self, output: Tensor, parcel: Parcel | None) -> None:
        """Remember the block's parcel, and be told when its backward begins."""
        before, self._before, self._here = self._before, parcel, parcel
        if not output.requires_grad or (before is None and parcel is None):
            return

        def backward_begins(gradient: Tensor) -> None:
            if parcel is not None:
                parcel.arrive()
            if before is not None:
                before.fetch()

        output.register_hook(backward_begins)

    def _begin_pass(self, model: nn.Module, args: Any) -> None:
        self._before = None


def _moved(parcel: Parcel, block: nn.Module, shared: Sequence[Any], device: torch.device) -> saved_tensors_hooks:
    """Put what is saved for backward into a parcel, but for what somebody else keeps on the device anyway.

    These are parameters and buffers, what all blocks share, and tensors whose gradient autograd leaves at themselves.
    """
    fixed = [*block.buffers(), *(x for x in block.parameters() if type(x) is nn.Parameter), *_tensors(shared)]
    storages = {x.untyped_storage().data_ptr() for x in fixed}

    def stays(x: Tensor) -> bool:
        base = x if x._base is None else x._base
        if isinstance(base, nn.Parameter) or (base.is_leaf and base.requires_grad):
            return True
        return type(x) is not Tensor or x.device.type != device.type or x.untyped_storage().data_ptr() in storages

    def pack(x: Tensor) -> Item | Tensor:
        kept = x.detach()  # a node that kept its own output could never be freed
        return kept if stays(x) else parcel.put(kept)

    return saved_tensors_hooks(pack, lambda kept: kept() if isinstance(kept, Item) else kept)


def _tensors(shared: Sequence[Any]) -> list[Tensor]:
    found = []
    for one in shared:
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, tuple | list):
            found += _tensors(one)
        elif hasattr(one, "__dict__"):
            found += _tensors(list(vars(one).values()))
    return found
