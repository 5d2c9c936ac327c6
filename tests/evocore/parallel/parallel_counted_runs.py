"""Tiny runs by way of ``train`` on several processes, of which every exchange and every storage is written down.

What PyTorch's own full sharding exchanges goes to process groups without our collectives: a mode of PyTorch's
dispatcher sees it there, and writes it into the same list.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.distributed as dist
from parallel_counted_cases import CASES, STEPS
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import evocore.training.run as run_module
from evocore import hookimpl
from evocore.backends.cpu.collectives import CPUCollectives
from evocore.backends.cpu.device import CPUBackend
from evocore.checkpoint.boxes import Boxes
from evocore.nn.router import Router
from evocore.parallel.launch import LaunchEnvironment
from evocore.parallel.layout import Layout
from evocore.parallel.recording import Event, RecordingCollectives
from evocore.parallel.traffic import Routed
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan
from evocore.training.on_paper import RankOnPaper

END_OF_STEP = "end of step"
DIRECTIONS = {True: "pipeline", False: "pipeline_down"}


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
