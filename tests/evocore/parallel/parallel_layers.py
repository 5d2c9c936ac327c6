"""What the ranks of the tests of tensor parallelism have in common: groups whose exchanges are counted, and cuts."""

from collections import Counter
from itertools import groupby

import torch
import torch.distributed as dist

from evocore.backends.cpu.device import CPUBackend
from evocore.nn.layers import Linear
from evocore.parallel.groups import Groups
from evocore.parallel.recording import RecordingCollectives
from evocore.parallel.sizes import Sizes
from evocore.parallel.topology import Topology


def counted_groups(mode: str = "mtp", kv_parts: int = 1) -> tuple[Groups, RecordingCollectives]:
    """Groups of a run in which all ranks share every layer."""
    world, backend = dist.get_world_size(), CPUBackend()
    topology = Topology(Sizes(world=world, tensor=world, mode=mode, kv_parts=kv_parts))
    recorder = RecordingCollectives(backend.collectives())
    return Groups(topology, dist.get_rank(), backend, recorder), recorder


def calls(recorder: RecordingCollectives) -> dict[str, int]:
    """Exchanges by name since the last time."""
    counts = Counter(event.op for event in recorder.events if event.kind == "start")
    recorder.clear()
    return dict(counts)


def own(x: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """This rank's part of a dimension."""
    return x.chunk(dist.get_world_size(), dim)[dist.get_rank()]


def own_rows(layer: Linear) -> torch.Tensor:
    """Which rows of a column-parallel weight this rank holds: its part of each name's."""
    names = [name for name, length in layer.segments for _ in range(length)]
    rows = [own(torch.tensor([row for row, name in enumerate(names) if name == own_name])) for own_name in set(names)]
    return torch.cat(rows).sort().values


def cut_columns(layer: Linear) -> Linear:
    """This rank's part of a layer whose outputs are divided."""
    rows = own_rows(layer)
    names = [name for name, length in layer.segments for _ in range(length)]
    segments = [(name, len(list(run))) for name, run in groupby(names[row] for row in rows.tolist())]
    part = _linear(layer, layer.weight[rows], None if layer.bias is None else layer.bias[rows])
    part.segments = tuple(segments)
    return part


def cut_rows(layer: Linear) -> Linear:
    """This rank's part of a layer whose inputs are divided."""
    return _linear(layer, own(layer.weight, 1), layer.bias)


def random_linear(inputs, outputs, role, *, bias=False, segments=None, seed=0, dtype=torch.float32) -> Linear:
    """The same on every rank."""
    layer = Linear(inputs, outputs, role=role, dtype=dtype, init_std=1.0, bias=bias, segments=segments)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def random(*shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    """The same on every rank."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + seed)).to(dtype)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def _linear(like: Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    outputs, inputs = weight.shape
    part = Linear(inputs, outputs, role=like.role, dtype=weight.dtype, init_std=like.init_std, bias=bias is not None)
    with torch.no_grad():
        part.weight.copy_(weight)
        if bias is not None:
            part.bias.copy_(bias)
    return part
