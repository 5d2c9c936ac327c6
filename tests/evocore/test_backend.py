"""The device contract's defaults, and choosing a backend."""

import pytest
import torch

from evocore.backend import Backend, choose_backend
from evocore.errors import UserError
from evocore.plugins.manager import load_plugins


class Here(Backend):
    name, device_type, priority = "here", "cpu", 5


class Better(Backend):
    name, device_type, priority = "better", "cpu", 9

    def why_unavailable(self):
        return "no chip is plugged in"


class Strange(Backend):
    name, device_type = "strange", "hologram"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("EVOCORE_BACKEND", raising=False)


def test_best_available_backend_wins():
    backend, source = choose_backend([Here, Better, Strange])
    assert (backend.name, source) == ("here", "automatic")


def test_flag_beats_environment_beats_config(monkeypatch):
    class Other(Here):
        name = "other"

    offers = [Here, Other, Better]
    assert choose_backend(offers, config="other")[0].name == "other"
    monkeypatch.setenv("EVOCORE_BACKEND", "here")
    assert choose_backend(offers, config="other")[0].name == "here"
    backend, source = choose_backend(offers, flag="other", config="here")
    assert (backend.name, source) == ("other", "--backend")


@pytest.mark.parametrize("by", ["flag", "environment", "config"])
@pytest.mark.parametrize(("name", "reason"), [("nope", "names no backend"), ("better", "no chip is plugged in")])
def test_wanted_backend_that_is_not_to_be_had_lists_what_is(monkeypatch, by, name, reason):
    if by == "environment":
        monkeypatch.setenv("EVOCORE_BACKEND", name)
    options = {} if by == "environment" else {by: name}
    with pytest.raises(UserError, match=reason) as told:
        choose_backend([Here, Better, Strange], **options)
    assert "here (available)" in told.value.expected
    assert "strange (PyTorch" in told.value.expected and "has no device 'hologram')" in told.value.expected


def test_two_backends_of_one_name_are_refused_and_one_seen_twice_is_not():
    class Namesake(Here):
        name = "here"

    assert choose_backend([Here, Here])[0].name == "here"
    with pytest.raises(UserError, match="two plug-ins bring a backend named 'here'") as told:
        choose_backend([Here, Namesake], flag="here")
    assert f"{__name__}.Here and {__name__}." in told.value.wrong and "Namesake" in told.value.wrong
    assert "EVOCORE_PLUGINS=no:NAME" in told.value.fix


def test_nothing_available_is_an_error():
    with pytest.raises(UserError, match="no backend is available"):
        choose_backend([Better])


def test_defaults_serve_a_device_with_a_bare_module():
    backend, device = Here(), torch.device("cpu")
    backend.manual_seed(7)
    state = backend.rng_state(device)
    first = torch.rand(3)
    backend.set_rng_state(state, device)
    assert torch.equal(torch.rand(3), first)
    assert backend.memory(device) == {"allocated": 0, "peak": 0, "total": 0}
    assert backend.device_name(device) == "here"
    assert backend.peak_flops(torch.float32, device) is None and backend.peak_flops_source() == "unknown"
    backend.synchronize(device)


def test_cpu_comes_through_the_hooks_and_measures_its_peak_once():
    registry = load_plugins()
    (cpu,) = [offer() for offer in registry.backends() if offer.name == "cpu"]
    device = cpu.device(3)

    assert device == torch.device("cpu")
    assert 1e8 < cpu.peak_flops(torch.float32, device) == cpu.peak_flops(torch.float32, device) < 1e14
    assert cpu.preferred_dtype() in (torch.float32, torch.bfloat16)
    assert 0 < cpu.memory(device)["peak"] < cpu.memory(device)["total"]
