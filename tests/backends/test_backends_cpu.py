"""The CPU through the door of every device."""

import pytest
import torch

from evocore.backends.cpu.device import CPUBackend
from evocore.plugins.manager import load_plugins


@pytest.fixture
def cpu():
    return CPUBackend()


@pytest.fixture
def device(cpu):
    return cpu.device()


def test_it_is_offered_by_its_plugin_and_always_available():
    (offer,) = (backend for backend in load_plugins().backends() if backend.name == "cpu")
    assert offer().why_unavailable() is None and offer.priority < 0


def test_device_of_any_rank_is_the_one_there_is(cpu):
    assert cpu.device(3) == torch.device("cpu") and cpu.device_count() == 1 and cpu.device_name(cpu.device())


def test_streams_and_events_are_no_obstacle(cpu, device):
    cpu.set_device(device)
    with cpu.on_stream(cpu.stream(device)):
        total = torch.ones(3).sum()
    cpu.synchronize(device)
    assert total.item() == 3


def test_random_numbers_come_again(cpu, device):
    cpu.manual_seed(7)
    state = cpu.rng_state(device)
    first = torch.rand(4)
    cpu.set_rng_state(state, device)
    assert torch.equal(torch.rand(4), first)
    cpu.manual_seed(7)
    assert torch.equal(torch.rand(4), first)


def test_memory_grows_with_what_is_used_and_fits_the_machine(cpu, device):
    before = cpu.memory(device)
    block = torch.ones(64 * 2**20 // 4)
    after = cpu.memory(device)
    assert block.numel() and before["peak"] <= after["peak"] <= after["total"]
    assert after["peak"] > 64 * 2**20 and after["total"] > 2**30
    cpu.reset_peak_memory(device)
    cpu.empty_cache()


def test_peak_is_measured_once_and_never_guessed(cpu, device, monkeypatch):
    monkeypatch.setattr("evocore.backends.cpu.device.PROBE_SIZE", 256)
    peak = cpu.peak_flops(torch.float32, device)
    assert 1e8 < peak < 1e14 and cpu.peak_flops(torch.float32, device) == peak
    assert "measured" in cpu.peak_flops_source() and "256 x 256" in cpu.peak_flops_source()
    slow = cpu.preferred_dtype() == torch.float32
    assert (cpu.peak_flops(torch.bfloat16, device) is None) == slow


def test_autocast_and_dtypes(cpu):
    assert {torch.float32, torch.bfloat16} <= cpu.dtypes() and cpu.preferred_dtype() in cpu.dtypes()
    a = torch.ones(2, 2)
    with cpu.autocast(torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with cpu.autocast(torch.float32):
        assert (a @ a).dtype == torch.float32


def test_determinism_can_be_asked_for_and_taken_back(cpu):
    try:
        cpu.use_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        cpu.use_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_host_memory_needs_no_pinning_and_versions_name_what_matters(cpu):
    assert not cpu.pins_host_memory() and "threads" in cpu.versions()
