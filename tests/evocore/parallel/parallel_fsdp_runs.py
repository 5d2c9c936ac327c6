"""Tiny runs by way of ``train``, alone or on several processes, with and without fully sharded data parallelism."""

import gc
from contextlib import nullcontext
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import evocore.training.run as run_module
from evocore.backends.cpu.device import CPUBackend
from evocore.config import load_values
from evocore.ops.attention import CuSeqlens
from evocore.parallel.fsdp_deferral import DeferredRows
from evocore.parallel.groups import Groups
from evocore.parallel.launch import LaunchEnvironment
from evocore.parallel.sizes import Sizes
from evocore.parallel.topology import Topology
from evocore.plugins.manager import load_plugins
from evocore.training.observer import Observer

MODEL = dict(
    vocab_size=64, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_attention_heads=2,
    mlp_ratio=2, multiple_of=16, dtype="torch.float32",
)  # fmt: skip


def config(folder, batch, blocks, steps=10, **parallel):
    """``batch`` micro-batches per step of all data-parallel ranks together; one rank takes ``data.micro_num``."""
    values = dict(
        JOB_NAME="fsdp",
        model_type="LLAMA2",
        run_folder=str(folder),
        enable_tb=False,
        data=dict(seq_len=32, micro_bsz=1, micro_num=batch, total_steps=steps),
        lr_scheduler=dict(total_steps=10),
        adam=dict(lr=3e-3),
        model=MODEL,
        parallel=dict(zero1=dict(size=-1)) | parallel,
        hybrid_zero_optimizer=dict(clip_grad_norm=1.0),
        ckpt=dict(enable_save_ckpt=False),
    )
    for name, block in blocks.items():
        values[name] = {**values.get(name, {}), **block} if isinstance(block, dict) else block
    return values


class Figures(Observer):
    """Loss and gradient norm of each step, and the loss of its batch before it if that is evaluated."""

    def __init__(self):
        self.steps, self.evaluated = [], []

    def on_step(self, metrics):
        self.steps.append((metrics["loss"], metrics["grad_norm"]))


def train(values, prepare=lambda model, optimizer: None, evaluates=False):
    """Train on this rank, on as many as the process group has; the figures, known on rank 0, and the run's folder.

    ``evaluates`` adds to a step's figures the loss of its batch as evaluation computes it before the step.
    ``prepare`` is called with the model and the optimizer when they are ready.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    figures = Figures()

    class Prepared(run_module.TrainStep):
        def __init__(self, model, optimizer, *args, **options):
            super().__init__(model, optimizer, *args, **options)
            prepare(model, optimizer)

        def train(self, micro_batches, *args, **options):
            if evaluates:
                figures.evaluated.append(self.evaluate(micro_batches))
            return super().train(micro_batches, *args, **options)

    launch = LaunchEnvironment(rank=rank, local_rank=rank, world_size=world, local_world_size=world)
    connected = lambda *args: nullcontext()  # noqa: E731 - the pool of processes has connected them already
    with patch.multiple(run_module, process_group=connected, TrainStep=Prepared):
        _, folder = run_module.train(load_values(values), load_plugins(), launch, observers=[figures])
    if evaluates:
        return [(*step, loss) for step, loss in zip(figures.steps, figures.evaluated, strict=rank == 0)], folder
    return figures.steps, folder


class Exchanges(TorchDispatchMode):
    """Writes down what goes to process groups, whatever function of PyTorch sends it: name and number of ranks."""

    def __init__(self):
        super().__init__()
        self.events = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            (group,) = (arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg))
            self.events.append((function._opname, dist.ProcessGroup.unbox(group).size()))
        return function(*args, **kwargs or {})


def exchanges(values):
    """What this rank exchanges in a run, with how many, and where ``("block i", 0)`` runs forward."""

    def mark(model, _):
        for number, block in enumerate(model.layers):
            block.register_forward_pre_hook(lambda *_, number=number: seen.events.append((f"block {number}", 0)))

    with Exchanges() as seen:
        train(values, mark)
    return seen.events


def deferred_rows(shapes, micro_batches):
    """The gradients of this rank's rows of weights, of which each has the numbers of its elements plus some more.

    That is the rank and ten for each micro-batch. Two ranks share a weight, two replicas of it are on four ranks.
    """
    rank = dist.get_rank()
    groups = Groups(Topology(Sizes(world=4, zero=2)), rank, CPUBackend())
    zero, replicas = groups.get("zero"), groups.get("zero_replica")
    weights = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    rows = {name: [*weight.detach().chunk(2), weight.detach()[:0]][zero.rank] for name, weight in weights.items()}
    deferred = DeferredRows(zero, replicas, torch.float32, lambda name: rows[name].view(-1))
    for name, weight in weights.items():
        deferred.gathered(name, {name: weight})
    for micro in range(micro_batches):
        for weight in weights.values():
            deferred.deliver(weight, torch.arange(float(weight.numel())).view_as(weight) + rank + 10 * micro)
        deferred.start()
    deferred.finish()
    return rows


def losses_without_head(values):
    """Of some tokens in evaluation, before and after the head's rows become zero as loading might make them."""
    tokens_T, found = torch.arange(8), []

    def loss(model):
        with torch.no_grad():
            hidden_TD = model(tokens_T, tokens_T, CuSeqlens.of([0, len(tokens_T)], tokens_T.device))
            return float(model.loss(hidden_TD, tokens_T).loss_T.mean())

    def prepare(model, optimizer):
        found.append(loss(model))
        rows = optimizer.tensors()["master.output.weight"]
        for chunk in rows.__create_chunk_list__():
            rows.part(chunk.offsets).zero_()
        optimizer.publish()
        found.append(loss(model))

    train(values, prepare)
    return found


def held_bytes(values):
    """Bytes of all tensors that a run has left alive while its model and its optimizer still are."""
    gc.collect()
    before, kept = _storages(), []
    train(values, lambda *parts: kept.extend(parts))
    gc.collect()
    return sum(size for address, size in _storages().items() if address not in before)


def _storages():
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    stored = [one for one in tensors if torch._C._has_storage(one) and not one.is_meta]  # others' may be sparse
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in stored}
