"""The checkpoint of one step of InternEvo as a ``Source``: whole tensors in one spelling, whoever wrote which part.

Read are the weights. Its optimizer's state is not: it is one flat buffer per rank in an order that only the ranks'
plan of ownership tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from evocore.checkpoint.foreign.fit import require_fit
from evocore.checkpoint.foreign.source import Slab, TensorFacts, read_slabs
from evocore.checkpoint.foreign.torch_file import TorchFile, facts_of, rectangle
from evocore.checkpoint.internevo.config import require_same_meaning, saved_settings
from evocore.checkpoint.internevo.names import canonical, find_files, first_layers, take_apart
from evocore.checkpoint.internevo.parts import Placed, is_whole, join, unfuse
from evocore.errors import UserError
from evocore.nn.weight_map import Fused, Shape, WeightMap, WeightMatch

_GATED = re.compile(r"(?P<prefix>.*)\.w2\.weight")
_EXPERT = re.compile(r"(?P<before>.*\.wrapped_experts\.)(?P<group>\d+)(?P<after>\..*)")

Held = dict[str, list[Tensor]]
"""Name in one spelling -> what the ranks hold of it, in their order."""


class InternEvoFolder:
    """An open checkpoint, a ``Source``, that fits a model.

    Attributes:
        match: what of it is what of the model.

    Args:
        path: of one step.
        weights: the family's map.
        ours: shapes of the whole model's parameters and buffers.
        settings: the ``model`` block.

    Raises:
        UserError: there is no such checkpoint, a file is missing or holds more than tensors, or it is another model.
    """

    def __init__(
        self, path: Path, weights: WeightMap, ours: Mapping[str, Shape], settings: Mapping[str, Any]
    ) -> None:
        self.name = f"the InternEvo checkpoint {path}"
        self.match: WeightMatch = weights.match(ours)
        self._lock, self.bytes_read = Lock(), 0
        told = saved_settings(path)
        require_same_meaning(self.name, told, settings)
        held, sliced = _read_names(path)
        expected = {canonical(name): shape for name, shape in self.match.theirs.items()}
        placed = _separate(held, expected, weights.fused, sliced=sliced, told=told)
        _name_gates(held, expected, self.name, told)
        spelled = {canonical(name): name for name in self.match.theirs}
        self.tensors: dict[str, TensorFacts] = {}
        self._slabs: dict[str, list[Slab]] = {}
        for name, parts in held.items():
            found = join(parts, expected[name]) if name in expected else None
            if found is not None:
                placed[name] = found
            else:
                self.tensors[spelled.get(name, name)] = facts_of(_as_if_joined(parts))
        for name, whole in placed.items():
            dtype = facts_of(whole[0].tensor).dtype
            self.tensors[spelled[name]] = TensorFacts(dtype, expected[name])
            self._slabs[spelled[name]] = [Slab(p.rows, p.columns, partial(self._read, p.part)) for p in whole]
        require_fit(self.match, self)

    def read(self, name: str, rows: range, columns: range) -> Tensor:
        """As in ``Source``."""
        slabs = self._slabs[name]
        return read_slabs(slabs, rows, columns, slabs[0].read(range(0), range(0)).dtype)

    def _read(self, tensor: Tensor, rows: range, columns: range) -> Tensor:
        found = rectangle(tensor, rows, columns)
        with self._lock:
            self.bytes_read += found.numel() * found.element_size()
        return found


def _read_names(path: Path) -> tuple[Held, bool]:
    """What the files hold, and whether weight ranks wrote them, which have slices of rows."""
    ranks, experts = find_files(path)
    sliced = any(rank.wp is not None for rank in ranks)
    if sliced:  # what tensor ranks share, embedding and head, the first weight ranks have between them
        tensor_ranks = 1 + max(rank.tp or 0 for rank in ranks)
        ranks = [rank for rank in ranks if rank.tp is None or rank.tp == (rank.wp or 0) % tensor_ranks]
    ranks.sort(key=lambda rank: (rank.pp, (rank.wp if sliced else rank.tp) or 0))
    files = [
        (rank.pp, {take_apart(key): value for key, value in TorchFile(rank.path).values.items()}) for rank in ranks
    ]
    starts = first_layers((stage, name) for stage, values in files for name in values)
    held: Held = {}
    for stage, values in files:
        for name, value in values.items():
            layer = None if name.layer is None else starts[stage, name.chunk] + name.layer
            held.setdefault(name.name.replace("{layer}", str(layer)), []).append(value)
    stages, layers = max(rank.pp for rank in ranks) + 1, _layers(held)
    for file in sorted(experts, key=lambda file: (file.layer, file.expert, file.rank)):
        stage = min(file.layer // max(1, layers // stages), stages - 1)
        for key, value in TorchFile(file.path).values.items():
            name = take_apart(key)
            layer = None if name.layer is None else starts[stage, name.chunk] + name.layer
            for own, tensor in _single_experts(name.name.replace("{layer}", str(layer)), value):
                held.setdefault(own, []).append(tensor)
    return {name: values for name, values in held.items() if not name.endswith(".inv_freq")}, sliced


def _layers(held: Held) -> int:
    return 1 + max((int(name.split(".")[1]) for name in held if name.startswith("layers.")), default=0)


def _single_experts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Experts that are multiplied as one group are stored as one stack, each of them transposed."""
    match = _EXPERT.fullmatch(name)
    if match is None or value.dim() != 3:
        yield name, value
        return
    first = int(match["group"]) * len(value)
    for index, one in enumerate(value):
        yield f"{match['before']}{first + index}{match['after']}", one.T


def _separate(
    held: Held, expected: Mapping[str, Shape], fusions: tuple[Fused, ...], *, sliced: bool, told: Mapping[str, Any]
) -> dict[str, list[Placed]]:
    """Take out of ``held`` what is fused: name of a projection -> where its parts lie."""
    found: dict[str, list[Placed]] = {}
    for fused in fusions:
        pattern = re.escape(canonical(fused.name)).replace(r"\{layer\}", r"(?P<layer>\d+)")
        pattern = pattern.replace(r"\{kind\}", "(?P<kind>weight|bias)")
        layers = {(m["layer"], m.groupdict().get("kind")) for name in held if (m := re.fullmatch(pattern, name))}
        names = list(dict.fromkeys(name for name, _ in fused.runs))
        # InternEvo cuts what it fuses into equal lengths when it saves: of a slice, these are not the projections.
        cut = sliced and _cuts_slices(fused, told)
        if cut:
            first = re.escape(canonical(names[0])).replace(r"\{layer\}", r"(?P<layer>\d+)")
            first = first.replace(r"\{kind\}", "(?P<kind>weight|bias)")
            layers |= {(m["layer"], m.groupdict().get("kind")) for name in held if (m := re.fullmatch(first, name))}
        for layer, kind in sorted(layers, key=str):
            one = _filled(fused, layer, kind)
            own = list(dict.fromkeys(name for name, _ in one.runs))
            if one.name in held:
                parts = [[part] for part in held[one.name]]
            elif all(name in held and len(held[name]) == len(held[own[0]]) for name in own) and len(held[own[0]]) > 1:
                parts = [list(group) for group in zip(*(held[name] for name in own), strict=True)]
            else:
                continue
            projections = unfuse(parts, one, sliced=sliced)
            if all(name in expected and is_whole(placed, expected[name]) for name, placed in projections.items()):
                for name in (one.name, *own):
                    held.pop(name, None)
                found |= projections
    return found


def _cuts_slices(fused: Fused, told: Mapping[str, Any]) -> bool:
    if len(dict.fromkeys(name for name, _ in fused.runs)) == len(fused.runs) == 2:  # gate and up
        return bool(told.get("mlp_layer_fusion"))
    return len(fused.runs) == 3 and bool(told.get("enable_qkv_fusion", True)) and "enable_qkv_fusion" in told


def _filled(fused: Fused, layer: str, kind: str | None) -> Fused:
    def fill(name: str) -> str:
        return canonical(name).replace("{layer}", layer).replace("{kind}", kind or "")

    return Fused(fill(fused.name), tuple((fill(name), rows) for name, rows in fused.runs))


def _name_gates(held: Held, expected: Mapping[str, Shape], source: str, told: Mapping[str, Any]) -> None:
    """Old versions call the up projection w2 and the down projection w3: give both the names of new ones.

    Raises:
        UserError: nothing tells which it is.
    """
    old = new = either = False
    swapped = []
    for name in held:
        match = _GATED.fullmatch(name)
        other = f"{match['prefix']}.w3.weight" if match else ""
        if match and other in held and {name, other} <= expected.keys():
            swapped.append((name, other))
            goes_down, goes_up = expected[name], expected[other]
            is_new = join(held[name], goes_down) is not None and join(held[other], goes_up) is not None
            is_old = join(held[name], goes_up) is not None and join(held[other], goes_down) is not None
            old, new, either = old or is_old > is_new, new or is_new > is_old, either or (is_new and is_old)
    if new or not (old or either):
        return
    if not old:
        layout = told.get("mlp_layout") or (2 if "qk_interleaved" in told else 1 if "adapt_hf" in told else None)
        if layout is None:
            raise UserError(
                f"{source} has w2 and w3 of one shape, and nothing in model_config.pt tells which of them goes up",
                "mlp_layout = 1 (w2 goes up, InternEvo before its version 0.4) or 2 (w3 goes up) in model_config.pt",
                "add it to the dictionary there",
            )
        if layout == 2:
            return
    for down, up in swapped:
        held[down], held[up] = held[up], held[down]


def _as_if_joined(parts: list[Tensor]) -> Tensor:
    """A tensor with the shape that ranks seem to make up, for an error."""
    rows = sum(part.shape[0] if part.dim() else 1 for part in parts)
    return torch.empty((rows, *parts[0].shape[1:]), dtype=parts[0].dtype, device="meta")
