"""What the ranks of the tests of expert parallelism run: one layer of experts, and its gradients."""

from dataclasses import asdict

import torch
import torch.distributed as dist

from evocore.backends.cpu.device import CPUBackend
from evocore.config.schema_parallel import Weight
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.experts import RoutedExperts
from evocore.nn.router import Router
from evocore.nn.routing import RoutingRule
from evocore.ops.resolution import resolve
from evocore.parallel.expert import ExpertParallel, SharedTokens
from evocore.parallel.expert_sharding import shard_experts
from evocore.parallel.expert_weights import ExpertWeights
from evocore.parallel.groups import Groups
from evocore.parallel.recording import RecordingCollectives
from evocore.parallel.sharding import Part
from evocore.parallel.sizes import Sizes
from evocore.parallel.topology import Topology
from evocore.plugins.manager import load_plugins

EXPERTS, TOP_K, HIDDEN, WIDTH = 8, 2, 6, 4


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_weights():
    return random(EXPERTS, 2, WIDTH, HIDDEN, seed=1), random(EXPERTS, HIDDEN, WIDTH, seed=2)


class Model(torch.nn.Module):
    """Layers of experts one after another."""

    def __init__(self, layers):
        super().__init__()
        options = dict(dtype=torch.float32, init_std=(1.0, 1.0))
        self.layers = torch.nn.ModuleList(
            RoutedExperts(EXPERTS, TOP_K, HIDDEN, WIDTH, **options) for _ in range(layers)
        )

    def forward(self, x_TD, experts_TK, weights_TK):
        for layer in self.layers:
            x_TD = layer(x_TD, experts_TK, weights_TK)
        return x_TD


def built(place=lambda name: Part(0, 1), layers=1):
    """A model cut to a rank's places, with its part of the same weights in each layer."""
    with torch.device("meta"):
        model = Model(layers)
    sharings = shard_experts(model, *(place(name) for name in ("expert", "expert_tensor", "expert_weight")))
    registry = load_plugins()
    bind_kernels(model.to_empty(device="cpu"), resolve(model_requests(model), registry.kernels(), "cpu", {}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(sharings[name].placement.take(whole_weights()["w2" in name]))
    return model, sharings


def inputs(tokens, choices):
    """Of all ranks: token vectors, their experts as given, weights, and the gradient of the result."""
    experts_TK = torch.tensor(choices)
    return random(tokens, HIDDEN, seed=3), experts_TK, random(tokens, TOP_K, seed=4), random(tokens, HIDDEN, seed=5)


def alone(tokens, choices, layers=1):
    """Result and gradients in one process: of x, of weights, and of each layer's parameters."""
    model, _ = built(layers=layers)
    x_TD, experts_TK, weights_TK, into_TD = inputs(tokens, choices)
    x_TD.requires_grad_(), weights_TK.requires_grad_()
    y_TD = model(x_TD, experts_TK, weights_TK)
    y_TD.backward(into_TD)
    return y_TD.detach(), x_TD.grad, weights_TK.grad, [parameter.grad for parameter in model.parameters()]


def shared(sizes, tokens_here, choices, layers=1, overlap=False):
    """The same by the ranks of a group: this rank's part, what it exchanged, and where its weights' gradients lie.

    Args:
        sizes: of the topology.
        tokens_here: start and stop of each rank's tokens.
    """
    backend, rank = CPUBackend(), dist.get_rank()
    sizes = Sizes(world=dist.get_world_size(), **sizes)
    topology, recorder = Topology(sizes), RecordingCollectives(backend.collectives())
    groups = Groups(topology, rank, backend, recorder)
    model, sharings = built(lambda name: Part(topology.index(name, rank), topology.size(name)), layers)
    divided = sizes.expert_tensor > 1
    dispatch = ExpertParallel(sizes.mode, groups.get("tensor"), groups.get("expert"), divided=divided)
    for layer in model.layers:
        layer.dispatch = dispatch
    delivered, held = {}, None
    if sizes.expert_weight > 1:
        held = ExpertWeights(model, groups.get("expert_weight"), Weight(size=sizes.expert_weight, overlap=overlap))
        held.deliver = lambda parameter, gradient: delivered.__setitem__(parameter, gradient.clone())
    x_TD, experts_TK, weights_TK, into_TD = (
        x[slice(*tokens_here[rank])].clone() for x in inputs(tokens_here[-1][1], choices)
    )
    x_TD.requires_grad_(), weights_TK.requires_grad_()
    recorder.clear()
    y_TD = model(x_TD, experts_TK, weights_TK)
    forward = [event.op for event in recorder.events if event.kind == "start"]
    idle = [layer.buffer.untyped_storage().nbytes() for layer in model.modules() if hasattr(layer, "buffer")]
    recorder.clear()
    y_TD.backward(into_TD)
    if held is not None:
        held.finish()
        idle += [layer.buffer.untyped_storage().nbytes() for layer in model.modules() if hasattr(layer, "buffer")]
    backward = [event.op for event in recorder.events if event.kind == "start"]
    gradients = [
        (asdict(sharings[name].placement)["boxes"], parameter.grad if held is None else delivered[parameter])
        for name, parameter in model.named_parameters()
    ]
    return y_TD.detach(), x_TD.grad, weights_TK.grad, gradients, forward, backward, idle


def routed(ranges, capacity_factor, order):
    """What a router decides for this rank's tokens where ranks have the runs of tokens in ``ranges``."""
    backend, rank, world = CPUBackend(), dist.get_rank(), dist.get_world_size()
    groups = Groups(Topology(Sizes(world=world, tensor=world, mode="isp")), rank, backend)
    layer, x_TD = router(capacity_factor, order)
    layer.tokens = SharedTokens(groups.get("tensor"), lambda total: ranges)
    own_TD = torch.cat([x_TD[start:stop] for start, stop in ranges[rank]])
    routing = layer(own_TD)
    return routing.experts_TK, routing.weights_TK.detach(), layer.record.take()


def router(capacity_factor, order):
    rule = RoutingRule(4, 2, capacity_factor=capacity_factor, drop_order=order)
    layer = Router(HIDDEN, rule, layer=0, init_std=1.0)
    with torch.no_grad():
        layer.weight.copy_(random(4, HIDDEN, seed=6))
    return layer, random(16, HIDDEN, seed=7)
