"""Tiny runs by way of ``train`` on several processes, of which every exchange and every storage is written down.

What PyTorch's own full sharding exchanges goes to process groups without our collectives: a mode of PyTorch's
dispatcher sees it there, and writes it into the same list.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import evocore.training.run as run_module
from evocore import hookimpl
from evocore.backends.cpu.collectives import CPUCollectives
from evocore.backends.cpu.device import CPUBackend
from evocore.checkpoint.boxes import Boxes
from evocore.config import load_values
from evocore.nn.router import Router
from evocore.parallel.launch import LaunchEnvironment
from evocore.parallel.layout import Layout
from evocore.parallel.recording import Event, RecordingCollectives
from evocore.parallel.traffic import Routed
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan
from evocore.training.on_paper import RankOnPaper

STEPS = 3
END_OF_STEP = "end of step"
DIRECTIONS = {True: "pipeline", False: "pipeline_down"}
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
    """Of one rank.

    ``steps`` are the events of each step, with marks; ``stored`` are bytes of all storages after the last one;
    ``chosen`` is of each step and each layer with experts what its router chose, micro-batch by micro-batch;
    ``moments`` are the most bytes of fully sharded matrices at a moment.
    """

    steps: list[list[Event]]
    stored: int
    chosen: list[dict[int, list[torch.Tensor]]]
    moments: int

    def totals(self, step):
        """Calls and bytes by op and ranks; of messages between pipeline stages by op and direction."""
        found = {}
        for event in self.steps[step]:
            if event.kind == "start":
                to_higher = event.ranks[0] < event.ranks[1] if event.op in ("send", "recv") else None
                key = event.op, event.ranks if to_higher is None else DIRECTIONS[to_higher]
                calls, size = found.get(key, (0, 0))
                found[key] = calls + 1, size + event.bytes
        return found


def tensor(size, mode, **more):
    return dict(tensor=dict(size=size, mode=mode), **more)


def sharded(sequence, weight, **settings):
    return tensor(sequence, "isp", weight=dict(size=weight, **settings))


def pipeline(stages, schedule):
    return dict(pipeline=dict(size=stages, mode=schedule))


def mixture(ranks, *, weight=1, no_tp=False):
    """A mixture on so many ranks, whose weights are divided once more."""
    shared = dict(expert=dict(size=ranks, no_tp=no_tp), expert_weight=dict(size=weight, overlap=weight > 1))
    return dict(expert_zero1=dict(size=-1), **shared)


def experts(kind="Dropless", blocks=(), **options):
    """The model of a mixture of 4 experts, and ``blocks`` of the config."""
    model = dict(num_experts=4, top_k=2, num_shared_experts=1, mlp_ratio=1, moe_type=kind, moe_layer_kwargs=options)
    blocks = dict(blocks)
    return blocks | dict(model_type="INTERNLM_MoE", model=model | blocks.get("model", {}))


BY_BLOCK = dict(overlap=True, forward_overlap_per="layer")
BY_CALL = dict(overlap=True, forward_overlap_per="module")
FUSED = dict(layer_fuse_isp_comm=True)
OVERLAP = dict(hybrid_zero_optimizer=dict(overlap_sync_grad=True, overlap_sync_param=True, **SMALL_BUCKETS))
HALF = dict(model=dict(dtype="torch.bfloat16"))
FSDP = dict(zero1=dict(size=-1), fsdp=dict(enable=True))


def deep(layers, micro=1, **model):
    return dict(model=dict(num_layers=layers, **model), data=dict(micro_num=micro))


TWO_CHUNKS = dict(num_chunks=2)
GSHARD = dict(capacity_factor=0.75, min_capacity=1)
LATENT = dict(
    num_kv_attention_heads=4, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6
)
GATED = dict(shared_expert_gate=True, scoring_func="sigmoid", bias_update_rate=0.01)

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
    "mtp2 recompute post norms": Case(2, tensor(2, "mtp"), dict(model_type="GEMMA2", model=dict(checkpoint=1.0))),
    "mtp2 dp2 zero2": Case(4, tensor(2, "mtp", zero1=dict(size=2)), OVERLAP),
    "msp2 dp2 zero2 bfloat16": Case(4, tensor(2, "msp", zero1=dict(size=2)), HALF | OVERLAP),
    "fsp2 dp2 micro2": Case(4, tensor(2, "fsp"), dict(data=dict(micro_num=2)) | LLAMA),
    "mtp4 kv2": Case(4, tensor(4, "mtp")),
    "mtp2 dp2 zero2 head norms": Case(4, tensor(2, "mtp", zero1=dict(size=2)), OVERLAP | dict(model_type="QWEN3")),
    "msp2 norms behind products recompute": Case(
        2, tensor(2, "msp"), dict(model_type="GEMMA2", model=dict(checkpoint=1.0, final_logit_softcapping=3.0))
    ),
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
            ("selective", {}, dict(model=dict(checkpoint=1.0), selective_checkpoint=True)),
            ("released late", BY_CALL | dict(early_reduce_scatter_release=False), {}),
        )
    },
    "pp2 1F1B": Case(2, pipeline(2, "1F1B"), deep(3, 3)),
    "pp2 1F1B residual": Case(2, pipeline(2, "1F1B"), deep(2, 2, dtype="torch.bfloat16", residual_in_fp32=True)),
    "pp2 interleaved": Case(2, pipeline(2, "1F1B"), deep(4, 4, **TWO_CHUNKS)),
    "pp2 ZBH1": Case(2, pipeline(2, "ZBH1"), deep(2, 3)),
    "pp2 ZBV": Case(2, pipeline(2, "ZBV"), deep(4, 3)),
    "pp2 dp2 zero2 tied": Case(
        4, pipeline(2, "1F1B") | dict(zero1=dict(size=2)), deep(2, 2, tie_word_embeddings=True) | OVERLAP
    ),
    "pp2 ZBV tied": Case(2, pipeline(2, "ZBV"), deep(4, 2, tie_word_embeddings=True)),
    "pp2 interleaved fsp2 recompute": Case(
        4, pipeline(2, "1F1B") | tensor(2, "fsp"), deep(5, 2, checkpoint=0.5, **TWO_CHUNKS)
    ),
    "pp2 ZBV isp2 wp2 by call": Case(4, pipeline(2, "ZBV") | sharded(2, 2, **BY_CALL), deep(4, 3, checkpoint=0.5)),
    "pp2 interleaved isp2 wp2 by block tied": Case(
        4,
        pipeline(2, "1F1B") | sharded(2, 2, **BY_BLOCK),
        deep(5, 2, tie_word_embeddings=True, **TWO_CHUNKS),
    ),
    "mtp2 latent attention": Case(2, tensor(2, "mtp"), deep(2, 2, **LATENT)),
    "fsp2 latent attention recompute": Case(2, tensor(2, "fsp"), deep(2, 1, checkpoint=0.5, **LATENT)),
    "msp2 further predictions recompute": Case(
        2, tensor(2, "msp"), experts(blocks=deep(2, 1, checkpoint=1.0, extra_pred_tokens=2))
    ),
    "pp2 isp2 wp2 further predictions": Case(
        4, pipeline(2, "1F1B") | sharded(2, 2, **BY_BLOCK), deep(2, 2, extra_pred_tokens=1)
    ),
    "ep2": Case(2, mixture(2), experts()),
    "ep2 no losses micro2": Case(
        2, mixture(2), experts("GShard", deep(2, 2) | dict(loss=dict(moe_loss_coeff=0.0)), **GSHARD)
    ),
    "ep2 mtp2 recompute": Case(4, mixture(2) | tensor(2, "mtp"), experts(blocks=deep(2, 1, checkpoint=0.5))),
    "ep2 msp2 recompute": Case(
        4, mixture(2) | tensor(2, "msp"), experts("GShard", deep(2, 2, checkpoint=1.0), **GSHARD)
    ),
    "ep2 fsp2 gated recompute": Case(
        4, mixture(2) | tensor(2, "fsp"), experts(blocks=deep(2, 1, checkpoint=1.0), **GATED)
    ),
    "ep2 no_tp mtp2": Case(
        2, mixture(2, no_tp=True) | tensor(2, "mtp"), experts(blocks=deep(2, 1, checkpoint=1.0, num_shared_experts=0))
    ),
    "ep4 no_tp msp2": Case(4, mixture(4, no_tp=True) | tensor(2, "msp"), experts("GShard", **GSHARD)),
    "ep2 expert zero2": Case(4, mixture(2) | dict(zero1=dict(size=4)), experts(blocks=OVERLAP)),
    "isp2 ep2 ewp2": Case(4, mixture(2, weight=2) | sharded(2, 2, **BY_CALL), experts()),
    "isp4 ewp4 recompute": Case(
        4, mixture(1, weight=4) | sharded(4, 2), experts("GShard", deep(2, 1, checkpoint=1.0), **GSHARD)
    ),
    "pp2 ZBV ewp2": Case(
        4, mixture(1, weight=2) | pipeline(2, "ZBV") | sharded(2, 2), experts(blocks=deep(4, 3, checkpoint=0.5))
    ),
    "fsdp2": Case(2, FSDP, LLAMA | deep(2, 2)),
    "fsdp2 bfloat16": Case(2, FSDP, LLAMA | dict(HALF, reduce_comm_dtype="torch.bfloat16")),
    "fsdp2 dp2 micro2": Case(4, FSDP | dict(zero1=dict(size=2)), LLAMA | deep(2, 2)),
    "fsdp2 dp2 bfloat16": Case(
        4,
        FSDP | dict(zero1=dict(size=2)),
        deep(2, 2, dtype="torch.bfloat16") | dict(reduce_comm_dtype="torch.bfloat16"),
    ),
    "fsdp2 msp2 recompute": Case(4, tensor(2, "msp", **FSDP), deep(2, 2, checkpoint=0.5)),
    "pp2 1F1B fsdp2": Case(4, pipeline(2, "1F1B") | FSDP, LLAMA | deep(3, 3)),
    "pp2 interleaved fsdp2 recompute": Case(
        4, pipeline(2, "1F1B") | FSDP, deep(4, 2, checkpoint=0.5, dtype="torch.bfloat16", **TWO_CHUNKS)
    ),
    "pp2 ZBV fsdp2 odd": Case(
        4,
        pipeline(2, "ZBV") | FSDP,
        LLAMA | deep(4, 3, hidden_size=24, mlp_ratio=1.1, multiple_of=3, vocab_size=63, dtype="torch.bfloat16"),
    ),
    "fsdp2 ep2": Case(2, mixture(2) | FSDP, experts()),
    "fsdp4 tied odd": Case(
        4, FSDP, LLAMA | deep(2, 1, tie_word_embeddings=True, hidden_size=24, num_kv_attention_heads=1)
    ),
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
    recorder = RecordingCollectives(Unwatched())
    kept, chosen, watching = [], [{}], Watching(recorder)

    class RecordedBackend(CPUBackend):
        name = "recorded"

        def collectives(self):
            return recorder

        def synchronize(self, device):
            recorder.mark(END_OF_STEP)
            chosen.append({})

    class Plugin:
        @hookimpl
        def evocore_backends(self):
            return [RecordedBackend]

    class MarkedStep(run_module.TrainStep):
        def __init__(self, model, optimizer, *args, **options):
            super().__init__(model, optimizer, *args, **options)
            kept.extend([model, optimizer])
            mark_blocks(model, recorder)
            note_choices(model, chosen)

    registry = load_plugins()
    registry.register(Plugin(), "recorded")
    launch = LaunchEnvironment(rank=rank, local_rank=rank, world_size=world, local_world_size=world)
    connected = lambda *args: nullcontext()  # noqa: E731 - the pool of processes has connected them already
    sharded_by_torch = "fsdp" in case.parallel
    with (
        patch.multiple(run_module, process_group=connected, TrainStep=MarkedStep),
        watching if sharded_by_torch else nullcontext(),
    ):
        run_module.train(case.config(folder), registry, launch, backend="recorded")
    ends = [place for place, event in enumerate(recorder.events) if event.op == END_OF_STEP]
    steps = [recorder.events[start + 1 : end + 1] for start, end in zip([-1, *ends], ends, strict=False)]
    assert len(steps) == STEPS
    return Seen(steps, stored_bytes(*kept), chosen[:STEPS], watching.most)


class Watching(TorchDispatchMode):
    """Writes down what goes to process groups, whatever function of PyTorch sends it.

    Attributes:
        most: bytes of gathered matrices that existed at a moment: as they arrived, and as they are computed with.
    """

    OPS = {"_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter", "allreduce_": "all_reduce"}

    def __init__(self, recorder):
        super().__init__()
        self._recorder, self.most, self._arrived, self._used = recorder, 0, [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            (group,) = (arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg))
            tensors = [arg for arg in tree_leaves(args) if isinstance(arg, torch.Tensor)]
            op = self.OPS[function._opname]
            ranks = tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(group)))
            self._recorder.events.append(Event(op, ranks, max(one.nbytes for one in tensors), "start", 0))
            if op == "all_gather":
                storage = tensors[0].untyped_storage()
                self._arrived.append((StorageWeakRef(storage), storage.nbytes()))
                self._weigh()
        elif function.namespace == "fsdp" and function._opname == "split_with_sizes_copy":
            for one in kwargs["out"]:
                self._used[one.untyped_storage()._cdata] = one.untyped_storage()
            self._weigh()
        return function(*args, **kwargs or {})

    def _weigh(self):
        arrived = sum(size for storage, size in self._arrived if not storage.expired())
        self.most = max(self.most, arrived + sum(storage.nbytes() for storage in self._used.values()))


class Unwatched(CPUCollectives):
    """Our collectives, which are written down where they are called."""


def _unwatched(call):
    def unwatched(*args, **options):
        with _disable_current_modes():
            return call(*args, **options)

    return unwatched


for _op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send", "recv", "agree"):
    setattr(Unwatched, _op, _unwatched(getattr(CPUCollectives, _op)))


def note_choices(model, chosen):
    """Of each router what it chose in the forward passes of the step that goes on."""

    def note(router, args, routing):
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:  # not in a recomputation
            chosen[-1].setdefault(router.layer, []).append(routing.experts_TK.clone())

    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(note)


def routed(case, of_ranks, rank, step):
    """Rows that a rank sends and receives in a step, by layer, from what the routers of all ranks chose."""
    layout = Layout.of(case.config().config, case.world, rank)
    topology = layout.topology
    group = topology.group_of("expert", rank)
    share = topology.sizes.expert

    def sends(sender, layer):
        together = topology.group_of("tensor", sender)
        own = of_ranks[sender].chosen[step][layer]
        if layout.part("expert_tensor").parts > 1:
            return own if layout.mode == "mtp" else [x for r in together for x in of_ranks[r].chosen[step][layer]]
        return [x.chunk(len(together))[together.index(sender)] for x in own] if layout.mode == "mtp" else own

    found = {}
    for layer in of_ranks[rank].chosen[step]:
        kept = [torch.cat([x[x >= 0] for x in sends(sender, layer)]) for sender in group]
        mine = torch.cat(kept) // (4 // share) == group.index(rank)
        found[layer] = Routed(len(kept[group.index(rank)]), int(mine.sum()))
    return found


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
    tensors = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]
    for bucket in optimizer.buckets:
        tensors += [value for value in vars(bucket).values() if isinstance(value, torch.Tensor)]
    for boxes in optimizer.tensors().values():  # of fully sharded matrices as well
        tensors += boxes.parts.values() if isinstance(boxes, Boxes) else [boxes]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


_SEEN = {}


def seen(name, ranks, folder):
    """What each rank of a case has seen; each case runs once, whoever asks."""
    if name not in _SEEN:
        case = CASES[name]
        _SEEN[name] = [run(case, folder)] if case.world == 1 else ranks(case.world, run, case, folder)
    return _SEEN[name]
