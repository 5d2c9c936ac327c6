"""A rank's part of a tensor that is no whole tensor: boxes of it, each with the memory that holds it.

DTensor describes parts that are even slices of a mesh. What an optimizer's shard holds of a fused projection that is
split by heads is not: it is a range of elements of a few runs of rows. PyTorch's distributed checkpoint asks any
object for its boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from evocore.parallel.placement import Placement


class Boxes:
    """The boxes of one tensor that a rank holds.

    Attributes:
        shape: of the whole tensor.
        dtype: of its elements.
        parts: where each box starts -> the memory that holds it.
    """

    def __init__(self, shape: tuple[int, ...], parts: Mapping[tuple[int, ...], Tensor]) -> None:
        first = next(iter(parts.values()))
        self.shape, self.dtype, self.is_meta = torch.Size(shape), first.dtype, first.is_meta
        self.parts = {torch.Size(offsets): part for offsets, part in parts.items()}

    @classmethod
    def of(cls, placement: Placement, local: Tensor) -> Tensor | Boxes:
        """What lies in a contiguous local tensor: the tensor in its shape if that is the whole, else its boxes."""
        parts = placement.parts(local)
        if placement.boxes == Placement.whole(placement.shape).boxes:
            return parts[0]
        return cls(placement.shape, {box.offsets: part for box, part in zip(placement.boxes, parts, strict=True)})

    def part(self, offset: torch.Size | None) -> Tensor:
        """The memory of the box that starts there."""
        assert offset is not None
        return self.parts[offset]

    # --- what torch.distributed.checkpoint asks ---------------------------------------------------------------------

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=offset, sizes=part.shape),
                    properties=TensorProperties.create_from_tensor(part),
                    size=self.shape,
                ),
            )
            for offset, part in self.parts.items()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets=offset, sizes=part.shape) for offset, part in self.parts.items()]


class BoxesSavePlanner(DefaultSavePlanner):
    """Finds the memory of boxes, where its parent knows subclasses of Tensor only."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        held = self.state_dict[index.fqn]
        return held.part(index.offset) if isinstance(held, Boxes) else super().lookup_object(index)


class BoxesLoadPlanner(DefaultLoadPlanner):
    """The same for loading."""

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        held = self.state_dict[index.fqn]
        return held.part(index.offset) if isinstance(held, Boxes) else super().lookup_tensor(index)
