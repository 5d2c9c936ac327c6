"""How large the error of a result is beside that of the plain reference: one number that means the same everywhere.

A kernel computes in the precision of its inputs, so its error is judged by what the plain reference loses in the same
precision on the same inputs; both errors are distances to an oracle, the reference in a wider type.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = {torch.float64: 256, torch.float32: 16, torch.bfloat16: 4, torch.float16: 4}
"""Times eps of a result's dtype: an error that is always allowed. Low precision: operators that round between their
steps. float32: sums of hundreds in another order. float64: the same, where the reference is its own oracle."""
LIMIT = 2.0
"""The largest ratio that ``error_ratio`` may give for a sound kernel."""


def error_ratio(found: Tensor, plain: Tensor, exact: Tensor) -> Tensor:
    """``max|found - exact| / max(max|plain - exact|, floor)``.

    The floor is such that ``FLOOR`` units in the last place of the largest number of ``exact`` reach ``LIMIT``. It
    follows the size of the result, because gradients in a run can be of any size. Places where a reference itself is
    infinite or no number are left out: there is nothing to compare with.

    Args:
        found: a floating-point result of a kernel.
        plain: the reference's in the same precision, in the dtype of ``found``.
        exact: the oracle's, in a dtype as wide or wider.

    Returns:
        A scalar in the dtype of ``exact``, on its device: nobody waits for it. Infinite if ``found`` is not finite in
        a place where both references are.
    """
    assert found.shape == plain.shape == exact.shape, (found.shape, plain.shape, exact.shape)
    if not found.numel():
        return exact.new_zeros(())
    usual = exact.isfinite() & plain.isfinite()
    exact_0 = exact.where(usual, 0)
    error = (found.to(exact.dtype) - exact_0).abs().where(usual, 0)
    error = error.where(error.isfinite(), torch.inf).amax()
    theirs = (plain.to(exact.dtype) - exact_0).abs().where(usual, 0).amax()
    limits = torch.finfo(found.dtype)
    # Below the smallest normal number the spacing no longer shrinks.
    size = exact_0.abs().amax().clamp(min=limits.smallest_normal)
    return error / torch.maximum(theirs, size * (FLOOR[found.dtype] * limits.eps / LIMIT))
