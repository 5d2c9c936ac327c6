"""How large an error may be.

An error is at most twice that of the plain reference on the same call in the same precision on the same device. Where
the plain reference happens to be exact, or nearly so, twice its error would forbid even one rounding more; hence a
floor of a few units in the last place (``FLOOR``) of the largest number of the result, or of 1: inputs are of that
order, and a sum of theirs that cancels keeps their rounding. A reference cannot be measured against itself: it gets a
bound of its own (``REFERENCE``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from evocore.ops.accuracy import FLOOR, LIMIT
from evocore.testing.conformance.calls import ContractError, Results

REFERENCE = 16
"""Times eps of the activations' dtype: the reference rounds products and probabilities in low precision."""


class Rule:
    """The bound for the results of one example.

    Args:
        exact: the oracle's results, float64 on the host.
        plain: the plain reference's, in the precision and on the device of the example.
        reference_in: the dtype of the activations if it is a reference that is judged, otherwise None.
        zeros: whether results that are all 0 must be so to the bit.
    """

    def __init__(
        self, exact: Results, plain: Results, *, reference_in: torch.dtype | None = None, zeros: bool = False
    ) -> None:
        self._exact, self._plain = exact, plain
        self._reference_in, self._zeros = reference_in, zeros

    def check_differentiable(self, found: Results) -> None:
        """Raise a ``ContractError`` unless the same outputs as the reference's can be differentiated."""
        if found.differentiable != self._plain.differentiable:
            expected = [index for index, yes in enumerate(self._plain.differentiable) if yes]
            raise ContractError(
                f"outputs {[index for index, yes in enumerate(found.differentiable) if yes]} can be differentiated, "
                f"expected {expected}"
            )

    def worst(self, found: Results) -> float:
        """The largest error, as a multiple of what is allowed.

        Raises:
            ContractError: naming the first result of another dtype, shape or device, or with too large an error.
        """
        if len(found.outputs) != len(self._plain.outputs):
            raise ContractError(f"{len(found.outputs)} outputs, expected {len(self._plain.outputs)}")
        exact, plain = self._exact.named(), self._plain.named()
        return max((self._ratio(name, x, plain[name], exact[name]) for name, x in found.named().items()), default=0.0)

    def _ratio(self, name: str, found: Tensor, plain: Tensor, exact: Tensor) -> float:
        if (found.dtype, found.device) != (plain.dtype, plain.device):
            raise ContractError(
                f"{name} is {found.dtype} on {found.device}, expected {plain.dtype} on {plain.device}"
            )
        if found.shape != exact.shape:
            raise ContractError(f"{name} has shape {list(found.shape)}, expected {list(exact.shape)}")
        if not exact.is_floating_point():
            # What is compared in low precision may turn out as it does for the plain reference.
            wrong = (found.cpu() != exact) & (found.cpu() != plain.cpu())
            if wrong.any():
                raise ContractError(f"{name} differs in {int(wrong.sum())} of {wrong.numel()} places")
            return 0.0
        if not exact.numel():
            return 0.0
        error, allowed = _error(found, exact), self._allowed(found.dtype, plain, exact)
        if not error <= allowed:
            raise ContractError(f"{name} {list(found.shape)} has an error of {error:.3g}, allowed are {allowed:.3g}")
        return error / allowed if allowed else 0.0

    def _allowed(self, dtype: torch.dtype, plain: Tensor, exact: Tensor) -> float:
        finite = exact[exact.isfinite()].abs()
        largest = finite.max().item() if finite.numel() else 0.0
        if self._zeros and not largest:
            return 0.0
        size = max(1.0, largest)
        if self._reference_in is not None:
            return REFERENCE * torch.finfo(self._reference_in).eps * size
        floor = FLOOR[dtype] * torch.finfo(dtype).eps * size
        theirs = _error(plain, exact)
        return max(LIMIT * theirs, floor) if theirs < float("inf") else floor


def _error(found: Tensor, exact: Tensor) -> float:
    """The largest difference; infinite if one is infinite or no number where the other is not."""
    found = found.cpu().double()
    usual = exact.isfinite()
    if not torch.equal(found[~usual], exact[~usual]) or not found[usual].isfinite().all():
        return float("inf")
    return (found - exact)[usual].abs().max().item() if usual.any() else 0.0
