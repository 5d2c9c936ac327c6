"""Tiny runs by way of ``train`` on several processes, of which every exchange and every storage is written down."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
import torch.distributed as dist

import evocore.training.run as run_module
from evocore import hookimpl
from evocore.backends.cpu.collectives import CPUCollectives
from evocore.backends.cpu.device import CPUBackend
from evocore.config import load_values
from evocore.parallel.launch import LaunchEnvironment
from evocore.parallel.layout import Layout
from evocore.parallel.recording import Event, RecordingCollectives
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan
from evocore.training.on_paper import RankOnPaper

STEPS = 3
END_OF_STEP = "end of step"
VOCAB, TOKENS = 64, 32

MODEL = dict(
    vocab_size=VOCAB, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_attention_heads=2,
    mlp_ratio=2, multiple_of=16, dtype="torch.float32",
)  # fmt: skip
SMALL_BUCKETS = dict(reduce_bucket_size=4000)
LLAMA = dict(model_type="LLAMA2")


@dataclass(frozen=True)
class Case:
    """One layout and what else the config says; ``blocks`` override the tiny config key by key."""

    world: int
    parallel: dict = field(default_factory=dict)
    blocks: dict = field(default_factory=dict)

    def config(self, folder="unused"):
        values = dict(
            JOB_NAME="counted",
            model_type="INTERNLM2",
            run_folder=str(folder),
            enable_tb=False,
            data=dict(seq_len=TOKENS, micro_bsz=1, micro_num=1, total_steps=STEPS),
            model=MODEL,
            parallel=dict(zero1=dict(size=1)) | self.parallel,
            hybrid_zero_optimizer=dict(clip_grad_norm=1.0),
            ckpt=dict(enable_save_ckpt=False),
        )
        for name, block in self.blocks.items():
            values[name] = {**values.get(name, {}), **block} if isinstance(block, dict) else block
        return load_values(values)


@dataclass(frozen=True)
class Seen:
    """Of one rank: the events of each step, with marks, and the bytes of all storages after the last one."""

    steps: list[list[Event]]
    stored: int

    def totals(self, step):
        """Calls and bytes by op and ranks."""
        found = {}
        for event in self.steps[step]:
            if event.kind == "start":
                calls, size = found.get((event.op, event.ranks), (0, 0))
                found[event.op, event.ranks] = calls + 1, size + event.bytes
        return found


def tensor(size, mode, **more):
    return dict(tensor=dict(size=size, mode=mode), **more)


def sharded(sequence, weight, **settings):
    return tensor(sequence, "isp", weight=dict(size=weight, **settings))


BY_BLOCK = dict(overlap=True, forward_overlap_per="layer")
BY_CALL = dict(overlap=True, forward_overlap_per="module")
FUSED = dict(layer_fuse_isp_comm=True)
OVERLAP = dict(hybrid_zero_optimizer=dict(overlap_sync_grad=True, overlap_sync_param=True, **SMALL_BUCKETS))
HALF = dict(model=dict(dtype="torch.bfloat16"))

CASES = {
    "alone": Case(1),
    "dp2": Case(2),
    "dp2 zero2": Case(2, dict(zero1=dict(size=2)), dict(hybrid_zero_optimizer=SMALL_BUCKETS)),
    "dp2 zero2 micro2": Case(2, dict(zero1=dict(size=2)), dict(data=dict(micro_num=2))),
    "dp2 zero2 bfloat16": Case(2, dict(zero1=dict(size=2)), HALF | dict(use_fp32_norm=True)),
    "dp2 reduced in bfloat16": Case(2, dict(zero1=dict(size=2)), HALF | dict(reduce_comm_dtype="torch.bfloat16")),
    "dp4 zero2": Case(4, dict(zero1=dict(size=2)), OVERLAP),
    "dp4 zero4": Case(4, dict(zero1=dict(size=-1)), OVERLAP | LLAMA),
    **{
        f"{mode}2{name}": Case(2, tensor(2, mode), blocks)
        for mode in ("mtp", "msp", "fsp")
        for name, blocks in {
            "": {},
            " recompute half": dict(model=dict(checkpoint=0.5)),
            " recompute": dict(model=dict(checkpoint=1.0), data=dict(micro_num=2)) | LLAMA,
        }.items()
    },
    "mtp2 dp2 zero2": Case(4, tensor(2, "mtp", zero1=dict(size=2)), OVERLAP),
    "msp2 dp2 zero2 bfloat16": Case(4, tensor(2, "msp", zero1=dict(size=2)), HALF | OVERLAP),
    "fsp2 dp2 micro2": Case(4, tensor(2, "fsp"), dict(data=dict(micro_num=2)) | LLAMA),
    "mtp4 kv2": Case(4, tensor(4, "mtp")),
    "msp4 kv2 recompute": Case(4, tensor(4, "msp"), dict(model=dict(checkpoint=1.0)) | LLAMA),
    "fsp4 kv1": Case(4, tensor(4, "fsp"), dict(model=dict(num_kv_attention_heads=1, qkv_bias=True, mlp_bias=True))),
    "isp2 wp2": Case(2, sharded(2, 2)),
    "isp2 wp1 micro2": Case(2, sharded(2, 1), dict(data=dict(micro_num=2))),
    "isp4 wp2 kv2": Case(4, sharded(4, 2), LLAMA),
    "isp1 wp4": Case(4, sharded(1, 4)),
    "isp1 wp4 by block": Case(4, sharded(1, 4, **BY_BLOCK), OVERLAP),
    "isp2 wp2 dp2 zero2": Case(4, sharded(2, 2, **BY_BLOCK, **FUSED) | dict(zero1=dict(size=2)), OVERLAP),
    **{
        f"isp2 wp2 {name}": Case(2, sharded(2, 2, **settings), blocks)
        for name, settings, blocks in (
            ("by block", BY_BLOCK, {}),
            ("by call", BY_CALL, {}),
            ("by block fused", BY_BLOCK | FUSED, LLAMA),
            ("by call fused", BY_CALL | FUSED, LLAMA),
            ("fused", FUSED, LLAMA),
            ("recompute", {}, dict(model=dict(checkpoint=1.0))),
            ("by block recompute half", BY_BLOCK, dict(model=dict(checkpoint=0.5))),
            ("by call recompute", BY_CALL, dict(model=dict(checkpoint=1.0), data=dict(micro_num=2))),
            ("released late", BY_CALL | dict(early_reduce_scatter_release=False), {}),
        )
    },
}


# --- by formula -----------------------------------------------------------------------------------------------------


def on_paper(case, rank):
    config = case.config().config
    plan = make_plan(config, load_plugins(), layout=Layout.of(config, case.world, rank), backend="cpu")
    return RankOnPaper(config, plan), plan.layout


# --- in truth -------------------------------------------------------------------------------------------------------


def run(case, folder):
    """Train on this rank; what was seen."""
    world = case.world
    rank = dist.get_rank() if dist.is_initialized() else 0
    recorder = RecordingCollectives(CPUCollectives())
    kept = []

    class RecordedBackend(CPUBackend):
        name = "recorded"

        def collectives(self):
            return recorder

        def synchronize(self, device):
            recorder.mark(END_OF_STEP)

    class Plugin:
        @hookimpl
        def evocore_backends(self):
            return [RecordedBackend]

    class MarkedStep(run_module.TrainStep):
        def __init__(self, model, optimizer, *args, **options):
            super().__init__(model, optimizer, *args, **options)
            kept.extend([model, optimizer])
            mark_blocks(model, recorder)

    registry = load_plugins()
    registry.register(Plugin(), "recorded")
    launch = LaunchEnvironment(rank=rank, local_rank=rank, world_size=world, local_world_size=world)
    connected = lambda *args: nullcontext()  # noqa: E731 - the pool of processes has connected them already
    with patch.multiple(run_module, process_group=connected, TrainStep=MarkedStep):
        run_module.train(case.config(folder), registry, launch, backend="recorded")
    ends = [place for place, event in enumerate(recorder.events) if event.op == END_OF_STEP]
    steps = [recorder.events[start + 1 : end + 1] for start, end in zip([-1, *ends], ends, strict=False)]
    assert len(steps) == STEPS
    return Seen(steps, stored_bytes(*kept))


def mark_blocks(model, recorder):
    """Marks where blocks begin and end in forward (recomputed ones again) and end in backward, and each gradient."""

    def before(number):
        def hook(block, args):
            recorder.mark(f"block {number} begins")
            if args[0].requires_grad and torch.is_grad_enabled():
                args[0].register_hook(lambda grad: recorder.mark(f"backward of block {number} ends"))

        return hook

    for number, block in enumerate(model.layers):
        block.register_forward_pre_hook(before(number))
        block.register_forward_hook(lambda *_, number=number: recorder.mark(f"block {number} ends"))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: recorder.mark("gradient"))


def stored_bytes(model, optimizer):
    """Of all storages that parameters, their gradients and the optimizer hold, each once."""
    optimizer.wait()
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for bucket in optimizer.buckets:
        tensors += [value for value in vars(bucket).values() if isinstance(value, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


_SEEN = {}


def seen(name, ranks, folder):
    """What each rank of a case has seen; each case runs once, whoever asks."""
    if name not in _SEEN:
        case = CASES[name]
        _SEEN[name] = [run(case, folder)] if case.world == 1 else ranks(case.world, run, case, folder)
    return _SEEN[name]
