"""The conformance kit on devices that are wrong, each in one way: the check of that must find it and say what."""

from __future__ import annotations

import gc
import math
from contextlib import nullcontext

import deferred_device
import pytest
import torch
from deferred_device import DeferredBackend, Event, Queue, Stream

from evocore.backends.cpu.device import CPUBackend
from evocore.testing.conformance import memory, streams
from evocore.testing.conformance.device import DEVICE_CHECKS, check_device
from evocore.testing.conformance.memory import BLOCK


def wrong(base=CPUBackend, **members):
    """A backend like another but for these members; what is no function is returned by one."""
    return type("Wrong", (base,), {k: v if callable(v) else (lambda self, *_, v=v: v) for k, v in members.items()})()


def found(backend, check):
    finding = check_device(backend, check)
    assert (finding.part, finding.check, finding.ranks) == ("device", check, 1)
    assert finding.reproducer == f"evocore conform --backend {backend.name} --part device --check {check}"
    assert (finding.what == "") == (finding.verdict == "passed")
    return finding.verdict, finding.what


def fails(backend, check, what):
    verdict, told = found(backend, check)
    assert verdict == "failed" and what in told and "\n" not in told, told


def figures(allocated=2**20, peak=2**20, total=2**30):
    return {"allocated": allocated, "peak": peak, "total": total}


def raising(self, *arguments):
    raise RuntimeError("no such\nluck")


def always_deterministic(self, on):
    torch.use_deterministic_algorithms(True)


WRONG = [
    ("devices", {"why_unavailable": "in repair"}, "why_unavailable() gives a reason"),
    ("devices", {"device_count": 0}, "device_count() is 0, although why_unavailable() is None"),
    ("devices", {"device": torch.device("meta")}, "device(0) is of type 'meta': return one of type 'cpu'"),
    ("devices", {"set_device": raising}, "set_device(cpu): raised RuntimeError: no such luck"),
    ("devices", {"device_name": ""}, "device_name(cpu) is ''"),
    ("records", {"versions": {"driver": 12}}, "versions() is {'driver': 12}"),
    ("records", {"health_problems": ["too hot\nmove it"]}, "return one line of text"),
    ("random_numbers", {"manual_seed": None}, "manual_seed(7) twice gives other numbers of the host"),
    ("random_numbers", {"manual_seed": lambda self, seed: torch.manual_seed(1)}, "(7) and (8) give the same"),
    ("random_numbers", {"set_rng_state": None}, "does not bring back the numbers of the host"),
    ("random_numbers", {"rng_state": lambda self, device: {"device": torch.get_rng_state()}}, "'host' among them"),
    ("dtypes", {"preferred_dtype": torch.float64}, "preferred_dtype() is float64: return one of dtypes()"),
    (
        "dtypes",
        {"dtypes": frozenset({torch.float32, torch.int8}), "preferred_dtype": torch.float32},
        "dtypes() has int8: take it out, or make this work: raised",
    ),
    ("autocast", {"autocast": lambda self, dtype: nullcontext()}, "a matrix product comes out as float32"),
    ("peak_flops", {"peak_flops": 0}, "is 0: return operations per second"),
    ("peak_flops", {"peak_flops": math.nan}, "is nan"),
    ("peak_flops", {"peak_flops": None, "peak_flops_source": ""}, "peak_flops_source() is ''"),
    ("deterministic", {"use_deterministic": None}, "use_deterministic(True) leaves PyTorch's switch off"),
    (
        "deterministic",
        {"use_deterministic": always_deterministic},
        "use_deterministic(False) leaves PyTorch's switch on",
    ),
    ("memory", {"memory": {"allocated": 1}}, "return bytes as allocated, peak and total"),
    ("memory", {"memory": figures(peak=2**19)}, "peak is 524288, less than the 1048576 bytes allocated"),
    ("memory", {"memory": figures(total=2**19)}, "total is 524288, less than"),
]


@pytest.mark.parametrize(("check", "members", "what"), WRONG)
def test_what_is_wrong_is_found(check, members, what):
    fails(wrong(**members), check, what)


@pytest.mark.parametrize("members", [{}, {"set_rng_state": None}, {"use_deterministic": always_deterministic}])
def test_what_was_set_before_is_put_back(members):
    before = torch.get_rng_state()
    for check in ("random_numbers", "deterministic"):
        check_device(wrong(**members), check)
    assert torch.equal(torch.get_rng_state(), before) and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("check", [name for name in DEVICE_CHECKS if name not in ("pinned_memory", "memory")])
def test_the_processor_passes(check):
    assert found(CPUBackend(), check) == ("passed", "")


@pytest.mark.parametrize(
    ("check", "members", "what"),
    [
        ("pinned_memory", {"pins_host_memory": False}, "pins_host_memory() is False"),
        ("peak_flops", {"peak_flops": None, "peak_flops_source": "a leaflet"}, "no peak is known: a leaflet"),
        ("memory", {"memory": figures(0, 0, 0)}, "memory() tells no figures"),
    ],
)
def test_what_is_not_claimed_is_neither_right_nor_wrong(check, members, what):
    assert found(wrong(**members), check) == ("not claimed", what)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="another device pins this memory")
def test_pinned_memory_that_is_claimed_and_not_there_is_found():
    fails(wrong(pins_host_memory=True), "pinned_memory", "return False, or make this work: raised RuntimeError")


# --- streams and events -------------------------------------------------------------------------------------------


class OutOfOrder(Stream):
    def run(self):
        self.calls[self.done :] = reversed(self.calls[self.done :])
        return super().run()


class WaitsForNoEvent(Stream):
    def wait_event(self, event):
        pass


class WaitsForNoStream(Stream):
    def wait_stream(self, stream):
        pass


class MakesNobodyWait(Event):
    def wait(self, stream):
        pass


class HappensAtOnce(Event):
    def record(self, stream):
        pass


class ReturnsAtOnce(Event):
    def synchronize(self):
        pass


class NeverComesToPass(Event):
    def query(self):
        return False

    def synchronize(self):
        deferred_device.run_all(self.stream.siblings)


@pytest.fixture
def like_an_accelerator(monkeypatch):
    """The processor has no streams of its own and memory figures of the process, which the kit puts up with."""
    for module in (streams, memory):
        monkeypatch.setattr(module, "HOST", "another")


@pytest.mark.parametrize("check", ["streams", "events", "synchronize"])
def test_a_device_that_is_as_late_as_it_may_be_passes(check, like_an_accelerator):
    assert found(wrong(DeferredBackend), check) == ("passed", "")


@pytest.mark.parametrize(
    ("check", "members", "what"),
    [
        ("streams", {"streams": OutOfOrder}, "work queued on one stream is not done in order"),
        ("streams", {"stream": lambda self, device: self.current_stream(device)}, "stream() returned the current"),
        (
            "streams",
            {"on_stream": lambda self, stream: Queue(stream)},
            "current_stream() is another one inside on_stream(stream)",
        ),
        ("events", {"events": MakesNobodyWait}, "event.record(first), event.wait(second): the second stream read 0"),
        ("events", {"streams": WaitsForNoEvent}, "event.record(first), second.wait_event(event): the second"),
        ("events", {"streams": WaitsForNoStream}, "second.wait_stream(first): the second stream read 0 where"),
        ("events", {"events": HappensAtOnce}, "let a stream that waits for an event start what follows only when"),
        ("synchronize", {"events": HappensAtOnce}, "event.synchronize(): the host read 0 before the device had"),
        ("synchronize", {"events": ReturnsAtOnce}, "event.synchronize(): query() is False after it"),
        ("synchronize", {"events": NeverComesToPass}, "query() is False after it"),
        (
            "synchronize",
            {"synchronize": None},
            "synchronize(device): the host read 0 before the device had written 1",
        ),
    ],
)
def test_a_device_that_does_not_order_its_work_is_found(check, members, what, like_an_accelerator):
    fails(wrong(DeferredBackend, **members), check, what)


# --- memory -------------------------------------------------------------------------------------------------------


class Counting(CPUBackend):
    """Counts this process's large tensors, and the most that there were when it was asked."""

    def __init__(self):
        self.peak = 0

    def memory(self, device):
        # Not isinstance: it would wake objects that pretend to be of another class.
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.device.type == "cpu"]
        tensors = [x for x in tensors if torch._C._has_storage(x)]  # other tests may have left sparse ones
        sizes = {x.data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        allocated = sum(size for size in sizes.values() if size >= BLOCK)  # others' garbage may go at any time
        self.peak = max(self.peak, allocated)
        return figures(allocated, self.peak, 2**60)

    def reset_peak_memory(self, device):
        self.peak = 0


def changed(**by):
    """The figures, but for some that are made of the right ones."""

    def memory(self, device):
        right = Counting.memory(self, device)
        return right | {name: change(right) for name, change in by.items()}

    return memory


def test_memory_that_is_counted_passes(like_an_accelerator):
    assert found(wrong(Counting), "memory") == ("passed", "")


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"memory": figures()}, f"allocated grew by 0 bytes when {BLOCK} were"),
        ({"memory": changed(allocated=lambda right: right["peak"])}, "bytes was freed: count what is held"),
        ({"memory": changed(peak=lambda right: right["allocated"])}, "peak fell when a tensor was freed"),
        ({"reset_peak_memory": None}, "after reset_peak_memory(): let it start again"),
    ],
)
def test_memory_figures_that_are_wrong_are_found(members, what, like_an_accelerator):
    fails(wrong(Counting, **members), "memory", what)


def test_figures_of_a_host_that_never_move_are_found(monkeypatch):
    grown = iter(range(0, 2**40, BLOCK))
    monkeypatch.setattr(memory, "_largest_resident", lambda: next(grown))
    fails(wrong(memory=figures()), "memory", "allocated is still 1048576 with")


def test_a_host_that_was_larger_before_cannot_tell(monkeypatch):
    monkeypatch.setattr(memory, "_largest_resident", lambda: 2**40)
    monkeypatch.setattr(memory, "MOST", 1)
    verdict, what = found(wrong(memory=figures()), "memory")
    assert verdict == "skipped" and what.startswith("this process has been larger")
