"""A small decoder whose blocks keep what they are told to, and the means to see what exists and what moves."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import ref

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evocore.backends.cpu.device import CPUBackend
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.parallel.activations import ActivationMemory, ActivationOptions
from evocore.plugins.manager import load_plugins

TOKENS, HIDDEN, HEADS, WIDTH, FLOAT32 = 24, 32, 4, 8, 4
CPU = torch.device("cpu")
FP32 = Numerics(torch.float32, torch.float32, torch.float32)
PLAIN, CUTS = ActivationOptions(), (0, 10, TOKENS)


class Training:
    """One micro-batch through a decoder.

    Args:
        cuts: cumulative lengths of its documents.

    Attributes:
        calls: of each op.
        log: numbers of the blocks that compute, forwards or again; copies, of a ``LateBackend``.
    """

    def __init__(self, options=PLAIN, *, family="LLAMA2", attention="blocked", backend=None, cuts=CUTS, **settings):
        registry = load_plugins()
        model = dict(
            vocab_size=64, hidden_size=HIDDEN, num_attention_heads=HEADS, num_kv_attention_heads=2, mlp_ratio=2,
            multiple_of=16, num_layers=4,
        )  # fmt: skip
        (found,) = (one for one in registry.models() if one.name == family)
        self.model, self.calls = found.build(model | settings, FP32), Counter()
        backend = backend or LateBackend()
        self.log, self.cuts = backend.log, cuts
        memory = ActivationMemory(backend, CPU, options)
        memory.connect(self.model)

        def wrap(function, request, layer):
            def counted(*args, **kwargs):
                self.calls[request.op] += 1
                if request.op == "rotary":
                    self.log.append(int(layer.split(".")[1]))
                return function(*args, **kwargs)

            return memory.wrap_attention(counted) if request.op == "attention" else counted

        chosen = resolve(model_requests(self.model), registry.kernels(), "cpu", dict(attention=attention))
        bind_kernels(self.model.to_empty(device="cpu"), chosen, wrap)
        initialise(self.model, 1)

    def loss(self):
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(64, (TOKENS,), generator=generator)
        hidden = self.model(tokens, torch.arange(TOKENS), CuSeqlens.of(self.cuts))
        return self.model.loss(hidden, tokens.roll(-1)).total

    def step(self):
        """The loss and all gradients."""
        self.model.zero_grad()
        loss = self.loss()
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in self.model.parameters())]


class Storages(TorchDispatchMode):
    """Knows the memory that was taken inside of it and still is, but for that of some tensors from before."""

    def __init__(self, before):
        super().__init__()
        self._before = {x.untyped_storage()._cdata for x in before}
        self._known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in self._before:
                    self._known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return found

    @property
    def bytes(self):
        return sum(size for storage, size in self._known.values() if not storage.expired())


def kept(options=PLAIN, **case):
    """Bytes that exist between forward and backward because of the forward."""
    training = Training(options, **case)
    with Storages(training.model.parameters()) as storages:
        loss = training.loss()
        found = storages.bytes
    loss.backward()
    return found


# --- a device that is late ------------------------------------------------------------------------------------------


class LateStream:
    """Does what is queued on it when compute waits for it, and not before; it keeps nothing alive that it needs.

    Attributes:
        follows: whether what is queued next begins when compute has done what it was given so far.
    """

    def __init__(self, log):
        self.calls, self.follows, self._log = [], False, log

    def wait_event(self, event):
        if event.stream.calls:
            self._log.append("arrived")
            event.come_to_pass()
        else:
            self.follows = True


class LateEvent:
    def record(self, stream):
        self.stream, self.place = stream, len(stream.calls)

    def come_to_pass(self):
        for place in range(self.place):
            call, self.stream.calls[place] = self.stream.calls[place], lambda: None
            call()


@dataclass
class Batch:
    """Copies that are queued together: their bytes, and whether what was read and written is still there."""

    bytes: int = 0
    sources: list = field(default_factory=list)
    targets: list = field(default_factory=list)

    def add(self, target, source):
        self.bytes += source.nbytes
        self.sources.append(StorageWeakRef(source.untyped_storage()))
        self.targets.append(StorageWeakRef(target.untyped_storage()))


def alive(storages):
    return any(not storage.expired() for storage in storages)


class _Queue(TorchDispatchMode):
    def __init__(self, stream, batch):
        super().__init__()
        self._stream, self._batch = stream, batch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is torch.ops.aten.copy_.default, func
        target, source = map(ref, args[:2])

        def copy():
            assert target() is not None and source() is not None, "freed before it was copied"
            target().copy_(source())

        self._batch.add(*args[:2])
        self._stream.calls.append(copy)
        return args[0]


class LateBackend(CPUBackend):
    """Copies are as late as they may be; of everything else the processor itself is the stream.

    Attributes:
        batches: of copies, in the order in which they were queued.
        left: when each was queued, which of those before had sources, and which had targets that were still there.
        log: where copies begin, and where compute waits for them.
    """

    def __init__(self):
        self.batches, self.left, self.log = [], [], []
        self._compute = LateStream(self.log)

    def stream(self, device):
        return LateStream(self.log)

    def current_stream(self, device):
        return self._compute

    def event(self):
        return LateEvent()

    @contextmanager
    def on_stream(self, stream):
        self.left.append(
            [
                {number for number, batch in enumerate(self.batches) if alive(getattr(batch, kind))}
                for kind in ("sources", "targets")
            ]
        )
        self.batches.append(Batch())
        self.log.append("copies")
        assert stream.follows, "copied before it was computed, or to where compute still reads"
        stream.follows = False
        with _Queue(stream, self.batches[-1]):
            yield
