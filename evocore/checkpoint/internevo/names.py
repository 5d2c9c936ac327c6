"""How InternEvo calls files and tensors, in every spelling that its versions have written.

A file is named by the place of the rank that wrote it. Layers are numbered from 0 in each pipeline stage, a wrapper
may have put ``model.`` before every name, and a stage of several chunks the chunk's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evocore.errors import UserError

_MODEL = re.compile(r"model(_tp(?P<tp>\d+))?(_wp(?P<wp>\d+))?_pp(?P<pp>\d+)(?P<rest>_(dp|zo)\d+)?\.pt")
_EXPERT = re.compile(r"model_moe_layer(?P<layer>\d+)_expert(?P<expert>\d+)_(?P<axis>tp|wp)(?P<rank>\d+)\.pt")
_PREFIX = re.compile(r"^(?:(?P<chunk>\d+)\.)?(?:model\.)?")
_LAYER = re.compile(r"^(?P<stack>layers|blocks)\.(?P<layer>\d+)\.")
_SPELLINGS = (
    (re.compile(r"\.word_embeddings\.weight$"), ".weight"),
    (re.compile(r"^(tok_embeddings|embed_tokens)\."), "embedding."),
    (re.compile(r"^output\."), "head."),
    (re.compile(r"\.Wqkv\."), ".wqkv."),
    (re.compile(r"\.out_proj\."), ".wo."),
    (re.compile(r"\.moe_layer\.residual_mlp\."), ".residual_mlp."),
)


@dataclass(frozen=True)
class RankFile:
    """The weights of one rank; ``tp`` or ``wp`` is None where the name leaves it out, so that all have the same."""

    path: Path
    pp: int
    tp: int | None
    wp: int | None


@dataclass(frozen=True)
class ExpertFile:
    """The weights of one expert of one layer, or the part of one rank."""

    path: Path
    layer: int
    expert: int
    axis: str
    rank: int


@dataclass(frozen=True)
class TensorName:
    """A name taken apart.

    Attributes:
        chunk: of the pipeline stage.
        layer: as the file numbers it; None outside of layers.
        name: in one spelling for all versions, the layer's number in it replaced by ``{layer}``.
    """

    chunk: int
    layer: int | None
    name: str


def find_files(path: Path) -> tuple[list[RankFile], list[ExpertFile]]:
    """The files with weights in the folder of one checkpoint.

    Raises:
        UserError: there are none, one is missing, or they are of a kind that is not read.
    """
    ranks, experts = [], []
    for file in sorted(path.iterdir()) if path.is_dir() else []:
        if match := _MODEL.fullmatch(file.name):
            if match["rest"]:
                raise UserError(
                    f"{file} is a part of InternEvo's old FSDP checkpoints, flat pieces without their shapes",
                    "model_tp0_pp0.pt, model_wp0_pp0.pt and the like",
                    "save it again from InternEvo without zero1.fsdp",
                )
            tp, wp = (None if match[axis] is None else int(match[axis]) for axis in ("tp", "wp"))
            ranks.append(RankFile(file, int(match["pp"]), tp, wp))
        elif match := _EXPERT.fullmatch(file.name):
            layer, expert, rank = (int(match[part]) for part in ("layer", "expert", "rank"))
            experts.append(ExpertFile(file, layer, expert, match["axis"], rank))
    if not ranks:
        raise UserError(
            f"there is no InternEvo checkpoint in {path}",
            "a folder with model_tp0_pp0.pt, model_wp0_pp0.pt or model_tp0_wp0_pp0.pt",
            "give the folder of one step, not the one above it",
        )
    _require_all(path, ranks)
    return ranks, experts


def _require_all(path: Path, ranks: list[RankFile]) -> None:
    stages = max(rank.pp for rank in ranks) + 1
    there = {(rank.pp, rank.tp if rank.wp is None else rank.wp) for rank in ranks}
    axis = "tp" if ranks[0].wp is None else "wp"
    for stage in range(stages):
        for place in range(max(place or 0 for _, place in there) + 1):
            if (stage, place) not in there:
                raise UserError(
                    f"{path} has no file of pipeline stage {stage} and {axis} rank {place}",
                    f"one for each of {stages} stages and {max(place or 0 for _, place in there) + 1} {axis} ranks",
                    "copy the missing file",
                )


def take_apart(name: str) -> TensorName:
    """Of a tensor in a file."""
    prefix = _PREFIX.match(name)
    assert prefix is not None
    rest = name[prefix.end() :]
    layer = _LAYER.match(rest)
    spelled = rest if layer is None else f"layers.{{layer}}.{rest[layer.end() :]}"
    return TensorName(int(prefix["chunk"] or 0), None if layer is None else int(layer["layer"]), canonical(spelled))


def canonical(name: str) -> str:
    """One spelling for all versions, for comparison."""
    for pattern, plain in _SPELLINGS:
        name = pattern.sub(plain, name)
    return re.sub(r"^blocks\.", "layers.", name)


def first_layers(found: Iterable[tuple[int, TensorName]]) -> dict[tuple[int, int], int]:
    """The number, in the whole model, of the first layer of each chunk ``(stage, chunk)``.

    Chunks follow one another as interleaved stages have them, or in the shape of a V where the last chunk, which is
    the one with the head, lies on the first stage.

    Args:
        found: stages and names of tensors.
    """
    counts: dict[tuple[int, int], int] = {}
    first: dict[tuple[int, int], int] = {}
    head = (0, 0)
    for stage, name in found:
        unit = stage, name.chunk
        counts.setdefault(unit, 0)
        if name.layer is not None:
            counts[unit] = max(counts[unit], name.layer + 1)
            first[unit] = min(first.get(unit, name.layer), name.layer)
        if name.name == "head.weight":
            head = unit
    stages, chunks = (max(unit[axis] for unit in counts) + 1 for axis in (0, 1))
    in_v = stages > 1 and chunks == 2 and head == (0, 1)

    def place(unit: tuple[int, int]) -> int:
        stage, chunk = unit
        return chunk * stages + (stages - 1 - stage if in_v and chunk == 1 else stage)

    starts, total = {}, 0
    for unit in sorted(counts, key=place):
        starts[unit] = 0 if first.get(unit, 0) else total  # numbered through, if not from 0
        total += counts[unit]
    return starts
