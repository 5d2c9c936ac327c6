"""One model trained in several ways on the same tokens: by evocore, by hand, by PyTorch's wrappers.

All ways share the model's code, its kernels, its initial weights, AdamW's settings and the clipping, so that what
differs is how ranks share the work. Peers are written as a user of PyTorch would write them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from evocore.backend import Backend
from evocore.config import Config, load_values
from evocore.data.batch import MicroBatch
from evocore.ops.attention import CuSeqlens
from evocore.ops.collectives import Collectives
from evocore.parallel.groups import Groups
from evocore.parallel.layout import Layout
from evocore.parallel.memory import memory
from evocore.parallel.runtime import Runtime
from evocore.parallel.zero import ZeroOptions
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import Plan, make_plan
from evocore.training.optimizer import Optimizer
from evocore.training.step import TrainStep

LR, BETA1, BETA2, EPS, WEIGHT_DECAY, CLIP = 1e-4, 0.9, 0.95, 1e-8, 0.01, 1.0
HEAD_DIM = 64
SEED = 1
OVERLAP = ZeroOptions(overlap_gradients=True, overlap_parameters=True)


@dataclass(frozen=True)
class Sizes:
    """The model and what one data-parallel rank trains on in a step; about 50 million parameters as they stand.

    Attributes:
        tokens: of a micro-batch.
        document: tokens of each document in it.
        chunks: of each pipeline stage.
        backend: evocore's name of the device.
        dtype: of weights and activations, as PyTorch calls it.
    """

    hidden: int = 768
    layers: int = 6
    vocab: int = 5120
    tokens: int = 512
    document: int = 128
    micro_batches: int = 1
    chunks: int = 1
    backend: str = "cpu"
    dtype: str = "float32"

    def config(self, **parallel: Any) -> Config:
        """As ``evocore train`` would read it, with this block ``parallel``."""
        model = dict(
            num_layers=self.layers, hidden_size=self.hidden, num_attention_heads=self.hidden // HEAD_DIM,
            num_kv_attention_heads=self.hidden // HEAD_DIM, mlp_ratio=8 / 3, multiple_of=64, vocab_size=self.vocab,
            num_chunks=self.chunks, dtype=f"torch.{self.dtype}",
        )  # fmt: skip
        values = dict(
            JOB_NAME="bench", model_type="LLAMA2", enable_tb=False, model=model,
            data=dict(seq_len=self.tokens, micro_bsz=1, micro_num=self.micro_batches, total_steps=1),
            parallel=dict(zero1=dict(size=1)) | parallel, ckpt=dict(enable_save_ckpt=False),
        )  # fmt: skip
        return load_values(values).config

    def batch(self, data_rank: int, number: int = 0) -> MicroBatch:
        """Random tokens, the same whenever the same rank asks for the same micro-batch."""
        draw = torch.Generator().manual_seed(data_rank * self.micro_batches + number)
        ids = torch.randint(self.vocab, (self.tokens + 1,), generator=draw)
        places = torch.arange(self.tokens) % self.document
        ends = (*range(0, self.tokens, self.document), self.tokens)
        return MicroBatch(ids[:-1], ids[1:], places, ends)


TINY = Sizes(hidden=2 * HEAD_DIM, layers=2, vocab=64, tokens=32, document=16)


@dataclass(frozen=True)
class Training:
    """One way to train.

    Attributes:
        step: makes an optimizer step and returns the loss before it, the mean over the tokens of this rank or of all.
        finish: waits for what the last step has left under way.
        held: bytes that this rank holds all the time by arithmetic.
        parameters: of the whole model.
        blocked: seconds so far in which gathers have held up the thread that computes.
    """

    step: Callable[[], Tensor]
    finish: Callable[[], None] = lambda: None
    held: int = 0
    parameters: int = 0
    blocked: Callable[[], float] = lambda: 0.0


def ours(
    sizes: Sizes,
    options: ZeroOptions,
    collectives: Callable[[Collectives], Collectives] = lambda own: own,
    **parallel: Any,
) -> Training:
    """evocore's runtime on as many ranks as there are, with this block ``parallel`` in the config.

    Args:
        collectives: makes of the backend's own what the groups call.
    """
    plan, runtime, model, device = built(sizes, collectives, **parallel)
    optimizer = Optimizer(
        model, plan.adamw(), weight_decay=WEIGHT_DECAY, eps=EPS, beta1=BETA1, runtime=runtime, options=options
    )
    step = TrainStep(
        model, optimizer, runtime, device,
        flops=plan.flops, loss_options={"label_smoothing": 0.0, "z_loss": 0.0}, clip=CLIP,
    )  # fmt: skip
    batches = [sizes.batch(runtime.data_rank, number) for number in range(sizes.micro_batches)]
    targets = sizes.tokens * sizes.micro_batches * runtime.data_size

    def train() -> Tensor:
        outcome = step.train(batches, targets, lr=LR, beta2=BETA2, loss_scale=1.0)
        count, total, _ = outcome.meter.sums[0]
        mean: Tensor = total / count
        return mean

    weight = sizes.config(**parallel).parallel.weight
    holdings = memory(model, plan.layout, plan.sharings, optimizer.buckets, weight=weight)
    held = sum(one.bytes for one in holdings if not one.bound)
    return Training(train, optimizer.wait, held, plan.parameters)


def built(
    sizes: Sizes, collectives: Callable[[Collectives], Collectives] = lambda own: own, **parallel: Any
) -> tuple[Plan, Runtime, nn.Module, torch.device]:
    """This rank's part of the model and its runtime, connected; see ``ours``."""
    config = sizes.config(**parallel)
    rank, world = _me()
    layout = Layout.of(config, world, rank)
    plan, device = _plan(config, sizes, layout)
    calls = collectives(plan.backend.collectives())
    runtime = Runtime(layout, Groups(layout.topology, rank, plan.backend, calls), calls, plan.sharings)
    keeps_buffers = plan.backend.reuses_gather_buffers()
    runtime.connect(plan.model, config.parallel.weight, device, keeps_buffers=keeps_buffers)
    return plan, runtime, plan.materialise(device, SEED, runtime), device


def by_hand(sizes: Sizes, *, updated: float = 1.0) -> Training:
    """The loop that one writes for one device: forward, backward, clip, fused AdamW.

    Ranks take no notice of one another. Parameters of lower precision than float32 have master weights.

    Args:
        updated: the share of the parameters that AdamW updates, as where ranks share this work.
    """
    plan, device = _plan(sizes.config(), sizes)
    model = WithLoss(plan.materialise(device, SEED), sizes, device)
    parameters: list[Tensor] = list(_share(list(model.parameters()), updated))
    half = sizes.dtype != "float32"
    masters = [parameter.detach().float() for parameter in parameters] if half else parameters
    optimizer = _adamw(masters)

    def step() -> Tensor:
        loss: Tensor = model()
        loss.backward()
        if half:
            gradients = [_gradient(parameter) for parameter in parameters]
            for master, gradient in zip(masters, gradients, strict=True):
                master.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(masters, CLIP)
        optimizer.step()
        if half:
            with torch.no_grad():
                torch._foreach_copy_(parameters, masters)
        optimizer.zero_grad()
        model.zero_grad()
        return loss.detach()

    return Training(step, parameters=plan.parameters)


def replicated(sizes: Sizes) -> Training:
    """``DistributedDataParallel``: the whole optimizer state on every rank, gradients all-reduced in buckets."""
    plan, device = _plan(sizes.config(), sizes)
    model = DistributedDataParallel(
        WithLoss(plan.materialise(device, SEED), sizes, device), gradient_as_bucket_view=True
    )
    return _wrapped(model, plan, copies=1)


def fully_sharded(sizes: Sizes) -> Training:
    """``fully_shard`` of every block and then of the whole."""
    plan, device = _plan(sizes.config(), sizes)
    decoder: Any = plan.materialise(device, SEED)
    model = WithLoss(decoder, sizes, device)
    for block in decoder.layers:
        fully_shard(block)
    fully_shard(model)
    return _wrapped(model, plan, copies=_me()[1])


PEERS: dict[str, Callable[[Sizes], Training]] = {"DDP": replicated, "FSDP2": fully_sharded}


class WithLoss(nn.Module):
    """Forward to the loss, as wrappers of modules want it; called without arguments, on this rank's tokens."""

    def __init__(self, model: nn.Module, sizes: Sizes, device: torch.device) -> None:
        super().__init__()
        self.model = model
        batch = sizes.batch(_me()[0])
        self._inputs = batch.tokens_T.to(device), batch.positions_T.to(device), CuSeqlens.of(batch.cu_seqlens, device)
        self._labels_T = batch.labels_T.to(device)
        self._weights_T = torch.full(self._labels_T.shape, 1 / sizes.tokens, device=device)

    def forward(self) -> Tensor:
        loss: Any = self.model
        total: Tensor = loss.loss(self.model(*self._inputs), self._labels_T, self._weights_T).total
        return total


def _wrapped(model: nn.Module, plan: Plan, *, copies: int) -> Training:
    """A wrapper whose gradients are means over the ranks; ``copies`` ranks share what is held."""
    optimizer = _adamw(model.parameters())

    def step() -> Tensor:
        loss: Tensor = model()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    itemsize = next(model.parameters()).element_size()
    return Training(step, held=4 * itemsize * plan.parameters // copies, parameters=plan.parameters)


def _plan(config: Config, sizes: Sizes, layout: Layout | None = None) -> tuple[Plan, torch.device]:
    chosen = {} if layout is None else {"layout": layout}
    plan = make_plan(config, load_plugins(), backend=sizes.backend, **chosen)
    device = plan.backend.device(_me()[0])
    plan.backend.set_device(device)
    return plan, device


def backend_named(name: str) -> Backend:
    """The backend, which must be usable here."""
    return make_plan(Sizes(backend=name).config(), load_plugins(), backend=name).backend


def _me() -> tuple[int, int]:
    """This rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _adamw(parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _share(parameters: list[nn.Parameter], share: float) -> Iterable[nn.Parameter]:
    """Of the parameters so many that they have about this share of the elements, the large ones first."""
    left = share * sum(parameter.numel() for parameter in parameters)
    for parameter in sorted(parameters, key=lambda one: -one.numel()):
        if parameter.numel() <= left + 1:
            left -= parameter.numel()
            yield parameter
