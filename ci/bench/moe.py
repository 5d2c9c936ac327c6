"""What sending tokens to experts costs: a mixture of experts beside a dense MLP of the same active operations.

    python ci/bench/moe.py [--device cpu] [--dtype float32] [--tokens 4096] [--rounds 7] [--peer] [--json]

The dense MLP is as wide as the experts that a token visits together, so that both multiply the same numbers of
elements; the difference are the router, the two permutations and the smaller products. Forward and backward, with
the auxiliary losses, in turns; reported are medians and their quotient, at most 1.25. ``--peer`` adds the block of
Mixtral of transformers with the same weights, which should take 1.5 times as long as ours or longer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evocore.config.schema_model import MoELayerKwargs
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.nn.router import LossWeights
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins

TARGET, PEER_TARGET = 1.25, 1.5
EXPERTS, TOP_K = 16, 2


def feed_forward(device: torch.device, dtype: torch.dtype, hidden: int, width: int, experts: int) -> nn.Module:
    """The feed-forward layer of a model with one block, with the kernels that win on the device."""
    settings = dict(
        vocab_size=8, hidden_size=hidden, num_layers=1, num_attention_heads=1, mlp_ratio=width / hidden,
        multiple_of=1, num_experts=experts, top_k=TOP_K, num_shared_experts=0, moe_type="Dropless",
        mlp_layer_fusion=True, moe_layer_kwargs=MoELayerKwargs().model_dump(),
    )  # fmt: skip
    registry = load_plugins()
    family = next(family for family in registry.models() if family.name == "LLAMA2")
    layer: nn.Module = family.build(settings, Numerics(dtype, dtype, dtype)).layers[0].feed_forward  # type: ignore
    layer.to_empty(device=device)
    bind_kernels(layer, resolve(model_requests(layer), registry.kernels(), device.type))
    initialise(layer, 0)
    return layer


def mixtral(ours: nn.Module, hidden: int, width: int) -> nn.Module:
    """The same block by transformers."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=hidden, intermediate_size=width, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    gate: Any = ours.gate
    experts: Any = ours.experts
    block = MixtralSparseMoeBlock(config).to(experts.w2.weight)
    with torch.no_grad():
        block.gate.weight.copy_(gate.weight)
        block.experts.gate_up_proj.copy_(experts.w13.weight.flatten(1, 2))
        block.experts.down_proj.copy_(experts.w2.weight)
    return block


def passes(layer: Callable[[Tensor], Any], x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        y = layer(x)
        (y[0] if isinstance(y, tuple) else y).backward(grad)

    return run


def in_turns(candidates: dict[str, Callable[[], None]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(of) for name, of in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024, help="of one expert")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    layer = feed_forward(device, dtype, given.hidden, given.width, EXPERTS)
    router: Any = layer.gate
    router.loss_weights = LossWeights(balance=0.01, z=0.001)
    dense = feed_forward(device, dtype, given.hidden, TOP_K * given.width, 1)
    x = torch.randn(given.tokens, given.hidden, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    candidates = {"mixture": passes(layer, x, grad), "dense": passes(dense, x, grad)}
    if given.peer:
        peer = mixtral(layer, given.hidden, given.width)
        candidates["transformers"] = passes(peer, x[None], grad[None])
    found = in_turns(candidates, device, given.rounds)
    quotients = {"mixture / dense": (found["mixture"] / found["dense"], TARGET)}
    if given.peer:
        quotients["transformers / mixture"] = (found["transformers"] / found["mixture"], PEER_TARGET)
    if given.json:
        print(json.dumps({"milliseconds": found, "quotients": quotients}))
    else:
        for name, milliseconds in found.items():
            print(f"{name:24} {milliseconds:10.2f} ms")
        for name, (quotient, target) in quotients.items():
            print(f"{name:24} {quotient:10.3f}    target {target}")


if __name__ == "__main__":
    main()
