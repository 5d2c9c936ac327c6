"""A tiny decoder whose weights are cut into flat shards by hand, and what a step of it computes on one rank."""

from dataclasses import dataclass, field
from functools import cache

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from evocore.backends.cpu.device import CPUBackend
from evocore.config.schema_parallel import Weight
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.nn.layers import Embedding, Linear
from evocore.ops.attention import CuSeqlens
from evocore.ops.collectives import FINISHED, Collectives
from evocore.ops.resolution import resolve
from evocore.parallel.groups import Group, Groups
from evocore.parallel.isp import WeightParallel
from evocore.parallel.placement import Placement, even_range
from evocore.parallel.recording import RecordingCollectives
from evocore.parallel.topology import Sizes, Topology
from evocore.plugins.manager import load_plugins

FP32 = Numerics(torch.float32, torch.float32, torch.float32)
# An odd width, so that hardly any weight divides evenly.
SMALL = dict(
    vocab_size=37, hidden_size=15, head_dim=4, num_layers=3, num_attention_heads=4, num_kv_attention_heads=2,
    mlp_ratio=1.4, multiple_of=3,
)  # fmt: skip
LAYERS, TOKENS = SMALL["num_layers"], 16


@dataclass(frozen=True)
class Case:
    """One way to run the same step."""

    sequence: int = 1
    weight: int = 1
    family: str = "INTERNLM2"
    model: dict = field(default_factory=dict)
    keeps_buffers: bool = False
    settings: dict = field(default_factory=dict)

    def __str__(self):
        return f"{self.family} sp {self.sequence} wp {self.weight} {self.model} {self.settings}"


@cache
def registry():
    return load_plugins()


def build_meta(case):
    family = next(family for family in registry().models() if family.name == case.family)
    return family.build(SMALL | case.model, FP32)


def build_whole(case):
    model = build_meta(case).to_empty(device="cpu")
    bind_kernels(model, resolve(model_requests(model), registry().kernels(), "cpu"))
    initialise(model, 1)
    return model


class Rank:
    """This process as one rank of a layout: its shard of the model, and gradients as an optimizer takes them."""

    def __init__(self, case):
        sizes = Sizes(world=dist.get_world_size(), mode="isp", tensor=case.sequence, weight=case.weight)
        groups = Groups(Topology(sizes), dist.get_rank(), CPUBackend())
        self._build(case, groups.get("weight"), groups.get("sequence"), groups.get("data").rank, lambda f, *_: f)

    @classmethod
    def pretended(cls, case):
        """One of the ranks that share weights, without another process: see ``Pretended``."""
        self = cls.__new__(cls)
        self.pretended = Pretended()
        self.recording = RecordingCollectives(self.pretended)
        weight = Group("weight", tuple(range(case.weight)), 0, None, self.recording)
        sequence = Group("sequence", (0,), 0, None, self.recording)

        def marking(function, request, layer):
            def marked(*args, **kwargs):
                self.recording.mark(f"{request.op} {layer}")
                return function(*args, **kwargs)

            return marked

        self._build(case, weight, sequence, 0, marking)
        return self

    def _build(self, case, weight, sequence, data_rank, mark):
        self.weight, self.sequence, self.data_rank = weight, sequence, data_rank
        whole = dict(build_whole(case).named_parameters())
        self.model = model = build_meta(case)
        self.placements = shard_weights(model, self.weight)
        for module in model.modules():
            if hasattr(module, "head_parts"):
                module.head_parts = self.sequence.size
        self.weights = WeightParallel(
            model,
            self.weight,
            Weight(size=self.weight.size, **case.settings),
            {name: parameter.shape for name, parameter in whole.items()},
            recomputed=range(model.spec.recompute_layers),
            keeps_buffers=case.keeps_buffers,
        )
        model.to_empty(device="cpu")

        def wrap(function, request, layer):
            marked = mark(function, request, layer)
            return self.weights.wrap_attention(marked, self.sequence) if request.op == "attention" else marked

        bind_kernels(model, resolve(model_requests(model), registry().kernels(), "cpu"), wrap)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.placements[name].take(whole[name]) if name in self.placements else whole[name])
        self.delivered = []
        names = {parameter: name for name, parameter in model.named_parameters()}

        def deliver(parameter, gradient):
            self.delivered.append(names[parameter])
            assert gradient.shape == parameter.shape
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient

        self.weights.deliver = deliver

    def loss(self, number):
        """Of this rank's part of its micro-batch ``number``."""
        tokens_T, positions_T, labels_T, documents = micro_batch(number, self.data_rank)
        length = TOKENS // self.sequence.size
        own = slice(self.sequence.rank * length, (self.sequence.rank + 1) * length)
        weights_T = torch.full((length,), 1 / TOKENS)
        hidden_TD = self.model(tokens_T[own], positions_T[own], documents)
        return self.model.loss(hidden_TD, labels_T[own], weights_T).total

    def gradients(self):
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}


class Pretended(Collectives):
    """Collectives among ranks that all have what this one has; it knows which of their tensors still exist.

    Attributes:
        gathered_bytes: of the gathered tensors that exist, at the start of each gather.
        whole_gradients: number of the unreduced tensors that exist, at the start of each reduction.
    """

    def __init__(self):
        self._gathered, self._unreduced = [], []
        self.gathered_bytes, self.whole_gradients = [], []

    def gathered(self):
        """Sizes by place in memory."""
        return {place: size for storage, place, size in self._gathered if not storage.expired()}

    def unreduced(self):
        return [storage for storage in self._unreduced if not storage.expired()]

    def all_gather(self, output, shard, group=None, *, asynchronous=False):
        self._gathered.append((StorageWeakRef(output.untyped_storage()), output.data_ptr(), output.nbytes))
        self.gathered_bytes.append(sum(self.gathered().values()))
        output.view(-1, *shard.shape).copy_(shard.expand(output.numel() // shard.numel(), -1))
        return FINISHED

    def reduce_scatter(self, shard, tensor, group=None, *, op="sum", asynchronous=False):
        self._unreduced.append(StorageWeakRef(tensor.untyped_storage()))
        self.whole_gradients.append(len(self.unreduced()))
        shard.copy_(tensor[: len(shard)])
        return FINISHED


def shard_weights(model, weight):
    placements = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear | Embedding):
            whole = Placement.whole(module.weight.shape)
            part = whole.elements(*even_range(whole.numel, weight.size, weight.rank))
            module.weight = nn.Parameter(torch.empty(part.local_shape, device="meta"))
            placements[f"{name}.weight"] = part
    return placements


def micro_batch(number, data_rank):
    """Packed documents, other ones on every data rank."""
    generator = torch.Generator().manual_seed(100 * number + data_rank)
    ends = [0, 5 + data_rank, 6 + data_rank, TOKENS]
    tokens_T = torch.randint(SMALL["vocab_size"], (TOKENS,), generator=generator)
    positions_T = torch.cat([torch.arange(stop - start) for start, stop in zip(ends, ends[1:], strict=False)])
    return tokens_T, positions_T, tokens_T.roll(-1), CuSeqlens.of(ends)


def step(rank, micro_batches=2):
    """Sum of the losses and of the gradients of some micro-batches."""
    total = 0.0
    for number in range(micro_batches):
        loss = rank.loss(number)
        loss.backward()
        rank.weights.finish()
        total += loss.item()
    return total


def expected_step(case, data_size, micro_batches=2):
    """Loss and gradients of all data ranks together, on one process that has everything."""
    model = build_whole(case)
    total = loss_and_gradients(model, data_size, micro_batches)
    return total, {name: parameter.grad for name, parameter in model.named_parameters()}


def loss_and_gradients(model, data_size=1, micro_batches=2):
    """Sum of the losses; gradients are added to those of the model."""
    total = 0.0
    for number in range(micro_batches):
        for data_rank in range(data_size):
            tokens_T, positions_T, labels_T, documents = micro_batch(number, data_rank)
            weights_T = torch.full((TOKENS,), 1 / TOKENS)
            loss = model.loss(model(tokens_T, positions_T, documents), labels_T, weights_T).total
            loss.backward()
            total += loss.item()
    return total
