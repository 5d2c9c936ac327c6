"""The gradient of a weight as a float32 sum of products, in little more memory than its result takes.

Summed in low precision, the products of many chunks would each be rounded; a float32 sum beside the result would take
twice the result's bytes. But the result is not written before the sum is complete, so until then its own memory holds
half of the sum.
"""

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

SLAB = 2**25
"""Elements of what is held beside sum and result for a moment, in the dtype of the result."""


class GradientSum:
    """Sum of products ``[V, C] @ [C, D]`` in the shape and dtype of a weight.

    Args:
        weight_VD: float32, or of half that size: then the sum takes ``2 V D`` bytes beyond its result.
    """

    def __init__(self, weight_VD: Tensor) -> None:
        self._result_VD = weight_VD.new_empty(weight_VD.shape)
        vocab, width = weight_VD.shape
        self._rows = max(1, SLAB // width)
        if weight_VD.dtype == torch.float32:
            self._sums = [self._result_VD.zero_()]
            return
        assert weight_VD.element_size() == 2, weight_VD.dtype
        half = vocab // 2 // 8 * 8  # a multiple of 16 bytes, so that both parts of a product are aligned
        within = self._result_VD.view(-1)[: 2 * half * width].view(torch.float32).view(half, width).zero_()
        self._sums = [within, weight_VD.new_zeros(vocab - half, width, dtype=torch.float32)]

    def add_product(self, a_VC: Tensor, b_CD: Tensor) -> None:
        """Add ``a_VC @ b_CD``."""
        for sum_VD, a in zip(self._sums, a_VC.split([len(x) for x in self._sums]), strict=True):
            if sum_VD.dtype == a.dtype:
                sum_VD.addmm_(a, b_CD)
            elif sum_VD.device.type == "cuda" and TorchVersion(torch.__version__) >= "2.10":
                # cuBLAS adds to float32 what it multiplied in low precision; PyTorch passes that on since 2.10.
                torch.addmm(sum_VD, a, b_CD, out_dtype=torch.float32, out=sum_VD)
            else:
                for sum_RD, a_RC in zip(sum_VD.split(self._rows), a.split(self._rows), strict=True):
                    sum_RD.add_(a_RC @ b_CD)

    def result(self) -> Tensor:
        """The sum in the dtype of the weight; nothing can be added any more."""
        if len(self._sums) == 1:
            return self._result_VD
        within, beside = self._sums
        # Row n of the result lies where row n / 2 of the sum does: from the first to the last, each batch is read as
        # a whole before it is written, no row is overwritten before it is read.
        for start in range(0, len(within), self._rows):
            batch_RD = within[start : start + self._rows].to(self._result_VD.dtype)
            self._result_VD[start : start + len(batch_RD)] = batch_RD
        self._result_VD[len(within) :] = beside
        return self._result_VD
