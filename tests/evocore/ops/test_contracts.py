"""Every contract is known by name, and a kernel for another one is found out."""

from dataclasses import fields

import pytest
import torch

from evocore.errors import UserError
from evocore.ops.contracts import CONTRACTS, check_contracts
from evocore.ops.kernel import Kernel
from evocore.ops.resolution import resolve
from evocore.ops.rms_norm import RMSNormRequest
from evocore.plugins.manager import load_plugins


def kernel(op, **facts):
    return Kernel(op, "strange", frozenset({"cpu"}), "strange.module:function", frozenset({torch.float32}), **facts)


@pytest.mark.parametrize("op", CONTRACTS)
def test_a_request_says_the_name_under_which_its_contract_is_known(op):
    request = CONTRACTS[op](torch.float32, **{field.name: 1 for field in fields(CONTRACTS[op])[1:]})
    assert request.op == op


@pytest.mark.parametrize("op", CONTRACTS)
def test_every_contract_has_a_reference_on_the_cpu(op):
    references = [offer for offer in load_plugins().kernels() if (offer.op, offer.provider) == (op, "reference")]
    assert any("cpu" in offer.devices for offer in references)


def test_a_kernel_for_a_contract_that_does_not_exist_is_an_error_with_the_likely_spelling():
    request = RMSNormRequest(torch.float32, 8)
    with pytest.raises(UserError) as caught:
        resolve([request], [kernel("rms_nrom"), *load_plugins().kernels()], "cpu")
    assert "op 'rms_nrom' of provider 'strange' (strange.module:function)" in caught.value.wrong
    assert "rms_norm" in caught.value.expected
    assert "did it mean rms_norm?" in caught.value.fix and "EVOCORE_PLUGINS=no:NAME" in caught.value.fix


def test_what_exists_passes():
    check_contracts(kernel(op) for op in CONTRACTS)
