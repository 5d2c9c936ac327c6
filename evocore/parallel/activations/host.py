"""What blocks keep for backward, on its way to host memory and back, beside compute.

A parcel is what one block keeps of one micro-batch. It goes through these states, each of which one call ends:

- being filled, while the block's forward runs: ``put``, then ``close``
- on the device; if backward comes now, it has never left: ``depart``
- on its way to the host, beside the forward of another block: ``land``
- on the host: ``fetch``
- on its way back, beside the backward of another block: ``arrive``
- on the device, until backward has let go of it, tensor by tensor

All copies are queued on one stream of their own, which waits for compute before each batch of them; compute waits for
them where it goes on to free or to use what they have read or written. The host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from evocore.backend import Backend


class HostCopies:
    """Copies between a device and its host."""

    def __init__(self, backend: Backend, device: torch.device) -> None:
        self._backend, self._device = backend, device
        self._stream = backend.stream(device)
        self._pinned = backend.pins_host_memory()

    def to_host(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """The same on the host, and the event to wait for before ``tensors`` are freed."""
        copies = [torch.empty_like(x, device="cpu", pin_memory=self._pinned) for x in tensors]
        return copies, self._copy(copies, tensors)

    def to_device(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """The same on the device, and the event to wait for before they are used."""
        copies = [torch.empty_like(x, device=self._device) for x in tensors]
        return copies, self._copy(copies, tensors)

    def wait(self, event: Any) -> None:
        """Let compute go on when the event has come to pass."""
        self._backend.current_stream(self._device).wait_event(event)

    def _copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> Any:
        # Until here compute has written the sources, or still uses the memory that the targets were given.
        before, done = self._backend.event(), self._backend.event()
        before.record(self._backend.current_stream(self._device))
        self._stream.wait_event(before)
        with self._backend.on_stream(self._stream):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
        done.record(self._stream)
        return done


class _Piece:
    """Memory that moves as one, a whole storage or a part of one: on the device, on the host, or in between."""

    def __init__(self, tensor: Tensor) -> None:
        self.device: Tensor | None = tensor
        self.host: Tensor | None = None


class Item:
    """A tensor in a parcel; called, it is there. The memory behind it is kept as long as there is an item of it."""

    def __init__(self, parcel: Parcel, tensor: Tensor) -> None:
        self._parcel = parcel
        self._tensor: Tensor | None = tensor
        self._piece: _Piece | None = None
        self._view: Callable[[Tensor], Tensor] = _itself

    def __call__(self) -> Tensor:
        """The tensor on the device."""
        if self._tensor is not None:
            return self._tensor
        assert self._piece is not None
        if self._piece.device is None:
            self._parcel.arrive()
        assert self._piece.device is not None
        return self._view(self._piece.device)

    @property
    def tensor(self) -> Tensor:
        """Before it belongs to a piece."""
        assert self._tensor is not None
        return self._tensor

    def belong_to(self, piece: _Piece, view: Callable[[Tensor], Tensor]) -> None:
        self._tensor, self._piece, self._view = None, piece, view


class _Move(NamedTuple):
    """A batch of copies under way. Sources and targets are kept until ``done`` was waited for."""

    pieces: list[ref[_Piece]]
    sources: list[Tensor]
    targets: list[Tensor]
    done: Any

    def ended(self) -> Iterator[tuple[_Piece, Tensor]]:
        """Pieces that somebody still needs, with their new memory."""
        for piece, target in zip(self.pieces, self.targets, strict=True):
            found = piece()
            if found is not None:
                yield found, target


class Parcel:
    """What one block keeps of one micro-batch; see above."""

    def __init__(self, copies: HostCopies) -> None:
        self._copies = copies
        self._filling: list[ref[Item]] = []
        self._pieces: list[ref[_Piece]] = []
        self._leaving: _Move | None = None
        self._coming: _Move | None = None

    def put(self, tensor: Tensor) -> Item:
        """Take a tensor, which nobody changes from now on."""
        item = Item(self, tensor)
        self._filling.append(ref(item))
        return item

    def close(self) -> None:
        """Decide what is copied: each storage once; where only parts of it are needed, these alone.

        A tensor whose memory was taken from under it in the meantime stays as it is: whoever has emptied it will fill
        it again before it is used. So do weights that are gathered for each use.
        """
        by_storage: dict[tuple[int, torch.dtype], list[Item]] = {}
        for item in (found for one in self._filling if (found := one()) is not None):
            storage = item.tensor.untyped_storage()
            if storage.nbytes():
                by_storage.setdefault((storage.data_ptr(), item.tensor.dtype), []).append(item)
        for items in by_storage.values():
            self._pieces += [ref(piece) for piece in _pieces(items)]
        self._filling.clear()

    def depart(self) -> None:
        """Start towards the host what is still needed."""
        pieces = [piece for one in self._pieces if (piece := one()) is not None]
        devices = [piece.device for piece in pieces if piece.device is not None]
        assert len(devices) == len(pieces) and self._leaving is None
        hosts, done = self._copies.to_host(devices)
        self._leaving = _Move([ref(piece) for piece in pieces], devices, hosts, done)

    def land(self) -> None:
        """Let go of the memory on the device, once it was copied."""
        assert self._leaving is not None
        self._copies.wait(self._leaving.done)
        for piece, host in self._leaving.ended():
            piece.device, piece.host = None, host
        self._leaving = None

    def fetch(self) -> None:
        """Start back to the device what is on the host; nothing if it is on its way or has not left."""
        pieces = [piece for one in self._pieces if (piece := one()) is not None]
        hosts = [piece.host for piece in pieces if piece.host is not None]
        if not hosts or self._coming is not None:
            return
        assert len(hosts) == len(pieces)
        devices, done = self._copies.to_device(hosts)
        self._coming = _Move([ref(piece) for piece in pieces], hosts, devices, done)

    def arrive(self) -> None:
        """From now on everything is on the device."""
        self.fetch()
        if self._coming is None:
            return
        self._copies.wait(self._coming.done)
        for piece, device in self._coming.ended():
            piece.device, piece.host = device, None
        self._coming = None


def _pieces(items: Sequence[Item]) -> list[_Piece]:
    """What to copy of one storage, for items that are in it."""
    views: dict[Any, list[Item]] = {}
    for item in items:
        x = item.tensor
        shape = x.numel() if x.is_contiguous() else (x.shape, x.stride())
        views.setdefault((x.storage_offset(), shape), []).append(item)
    whole = items[0].tensor.untyped_storage().nbytes() // items[0].tensor.itemsize
    if sum(same[0].tensor.numel() for same in views.values()) >= whole:
        piece = _Piece(items[0].tensor.as_strided((whole,), (1,), 0))
        for item in items:
            x = item.tensor
            item.belong_to(piece, _strided(x.shape, x.stride(), int(x.storage_offset())))
        return [piece]
    found = []
    for same in views.values():
        found.append(_Piece(same[0].tensor))
        for item in same:
            item.belong_to(found[-1], _reshaped(item.tensor.shape))
    return found


def _itself(x: Tensor) -> Tensor:
    return x


def _strided(shape: Sequence[int], stride: Sequence[int], offset: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.as_strided(shape, stride, offset)


def _reshaped(shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    return lambda x: x.view(shape)
