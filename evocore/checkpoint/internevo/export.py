"""Writes weights as InternEvo loads them: one file per tensor or weight rank of each pipeline stage.

InternEvo cannot load a checkpoint of another division than its own, so the division is chosen when it is written. A
file is a pickle of all its tensors: it is made in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evocore.checkpoint.foreign.compose import compose
from evocore.checkpoint.foreign.source import Source
from evocore.checkpoint.internevo.config import MODEL_CONFIG
from evocore.checkpoint.internevo.names import canonical
from evocore.checkpoint.internevo.parts import shares
from evocore.errors import UserError
from evocore.nn.weight_map import Fused, WeightMap, WeightMatch

_LAYER = re.compile(r"(?P<stack>layers|blocks)\.(?P<layer>\d+)\.(?P<rest>.*)")
_EXPERT = re.compile(r".*\.wrapped_experts\.(?P<expert>\d+)\..*")
_COLUMNS = re.compile(r".*\.(w[qkv]|w1|w3)\.(weight|bias)|(head)\.weight")
_ROWS = re.compile(r".*\.(wo|w2)\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class Division:
    """Over how many ranks InternEvo is to divide the model.

    Attributes:
        tensor: tensor ranks of its modes mtp, msp and fsp.
        weight: weight ranks of isp; 0 for another mode.
        pipeline: stages.
    """

    tensor: int = 1
    weight: int = 0
    pipeline: int = 1

    @property
    def ranks(self) -> int:
        """Of a stage."""
        return self.weight or self.tensor


def write_internevo(
    folder: Path,
    weights: WeightMap,
    match: WeightMatch,
    source: Source,
    dtype: torch.dtype,
    division: Division,
    settings: Mapping[str, Any],
    step: int,
) -> list[str]:
    """Write the files of one step into an existing folder; return the names of those with weights.

    Args:
        settings: the ``model`` block, for ``model_config.pt``.

    Raises:
        UserError: the model cannot be divided so, or a value does not fit the dtype.
    """
    layers = int(settings["num_layers"])
    _require_divisible(match, settings, division)
    axis = "wp" if division.weight else "tp"
    written: list[str] = []
    for stage in range(division.pipeline):
        first, last = _stage(layers, division.pipeline, stage)
        for rank in range(division.ranks):
            states: dict[str, dict[str, Tensor]] = {f"model_{axis}{rank}_pp{stage}.pt": {}}
            for name, tensor in _rank(weights, match, source, dtype, division, rank, first, last, layers):
                layer, expert = _LAYER.fullmatch(name), _EXPERT.fullmatch(name)
                key, file = name, f"model_{axis}{rank}_pp{stage}.pt"
                if layer is not None:
                    key = f"{layer['stack']}.{int(layer['layer']) - first}.{layer['rest']}"
                if layer is not None and expert is not None:
                    file = f"model_moe_layer{layer['layer']}_expert{expert['expert']}_{axis}{rank}.pt"
                states.setdefault(file, {})[key] = tensor
            for file, state in states.items():
                torch.save(state, folder / file)
            written += states
    plain = {
        key: value for key, value in settings.items() if value is None or isinstance(value, bool | int | float | str)
    }
    torch.save(dict(plain, mlp_layout=2), folder / MODEL_CONFIG)
    (folder / f"{step}.step").touch()
    return written


def _rank(
    weights: WeightMap,
    match: WeightMatch,
    source: Source,
    dtype: torch.dtype,
    division: Division,
    rank: int,
    first: int,
    last: int,
    layers: int,
) -> Iterator[tuple[str, Tensor]]:
    """Names, with the numbers that layers have in the whole model, and what a rank has of each."""
    joined = _joined(weights, match)
    inside = {part for one in joined for part, _ in one.runs}
    for name, shape in match.theirs.items():
        if name in inside or not _belongs(name, first, last, layers):
            continue
        rows, columns = range(shape[0]), range(shape[-1] if len(shape) > 1 else 1)
        plain, kind = canonical(name), _ROWS.fullmatch(canonical(name))
        if _COLUMNS.fullmatch(plain) or (kind and division.weight):
            rows = _part(rows, division.ranks, rank)
        elif kind and kind["kind"] == "weight" or plain == "embedding.weight":
            columns = _part(columns, division.ranks, rank)
        elif kind and rank > 0:
            continue  # one rank adds the bias to the sum
        tensor = compose(match, source, name, rows, columns, dtype)
        yield name, tensor.clone().view(tensor.shape if len(shape) > 1 else (len(rows),))
    for one in joined:
        if _belongs(one.name, first, last, layers):
            parts = []
            for name, start, count in shares(one, rank, division.ranks, sliced=bool(division.weight)):
                shape = match.theirs[name]
                columns = range(shape[-1] if len(shape) > 1 else 1)
                parts.append(compose(match, source, name, range(start, start + count), columns, dtype))
            whole = torch.cat(parts)
            yield one.name, whole if len(shape) > 1 else whole.view(-1)


def _joined(weights: WeightMap, match: WeightMatch) -> list[Fused]:
    """What is written as one, for each layer and kind that there is."""
    found = []
    for one in weights.fused:
        if one.written:
            first = re.escape(one.runs[0][0]).replace(r"\{layer\}", r"(?P<layer>\d+)")
            pattern = re.compile(first.replace(r"\{kind\}", "(?P<kind>weight|bias)"))
            for name in match.theirs:
                if there := pattern.fullmatch(name):
                    layer, kind = there["layer"], there["kind"]
                    filled = [
                        (text.replace("{layer}", layer).replace("{kind}", kind), rows) for text, rows in one.runs
                    ]
                    own = one.name.replace("{layer}", layer).replace("{kind}", kind)
                    found.append(Fused(own, tuple(filled), written=True))
    return found


def _belongs(name: str, first: int, last: int, layers: int) -> bool:
    match = _LAYER.fullmatch(name)
    if match is not None:
        return first <= int(match["layer"]) < last
    return first == 0 if canonical(name) == "embedding.weight" else last == layers


def _stage(layers: int, stages: int, stage: int) -> tuple[int, int]:
    """First layer and the one after the last, as InternEvo divides them: the last stages have what is left over."""
    each, over = divmod(layers, stages)
    first = stage * each + max(0, stage - (stages - over))
    return first, first + each + (stage >= stages - over)


def _part(rows: range, parts: int, index: int) -> range:
    length = len(rows) // parts
    return range(index * length, (index + 1) * length)


def _require_divisible(match: WeightMatch, settings: Mapping[str, Any], division: Division) -> None:
    sizes = {"num_layers": (int(settings["num_layers"]), division.pipeline, "stages")}
    if division.ranks > 1:
        for key in ("hidden_size", "vocab_size", "num_attention_heads", "num_kv_attention_heads"):
            sizes[key] = int(settings[key]), division.ranks, "weight ranks" if division.weight else "tensor ranks"
    for key, (size, parts, what) in sizes.items():
        if parts < 1 or (size < parts if key == "num_layers" else size % parts):
            raise UserError(
                f"model.{key} = {size} cannot be divided over {parts} {what}",
                f"a number of {what} that fits it",
                "choose other sizes with --tensor, --weight and --pipeline",
            )
