"""Peak rates of matrix products by the name that the driver gives a GPU.

Dense rates: the datasheets' figures "with sparsity" are halved. Products of 16-bit numbers accumulate in float32, as
training does. A name matches as a whole: a variant (Laptop, D, a slice by MIG) is another device, and unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peak:
    """What one GPU can do at most, in 1e12 floating-point operations per second; None where it cannot.

    Attributes:
        name: regular expression of the whole name, without the vendor's.
        bfloat16, float16: on tensor cores.
        tf32: float32 operands rounded to TF32, on tensor cores.
        float32: without rounding.
        source: where the figures stand.
    """

    name: str
    bfloat16: float | None
    float16: float | None
    tf32: float | None
    float32: float
    source: str

    def of(self, dtype: torch.dtype, tf32: bool) -> float | None:
        """Operations per second of products of ``dtype``; ``tf32`` tells whether float32 may be rounded to TF32."""
        float32 = self.tf32 if tf32 and self.tf32 is not None else self.float32
        rates = {torch.bfloat16: self.bfloat16, torch.float16: self.float16, torch.float32: float32}
        rate = rates.get(dtype)
        return None if rate is None else rate * 1e12


_A100 = "NVIDIA A100 datasheet"
_H100 = "NVIDIA H100 datasheet"
_BLACKWELL = "NVIDIA Blackwell architecture technical brief"
_ADA = "NVIDIA Ada GPU architecture whitepaper"
_GA102 = "NVIDIA Ampere GA102 whitepaper"

PEAKS = (
    Peak(r"A100-SXM4-[48]0GB|A100-PCIE-40GB|A100 80GB PCIe", 312, 312, 156, 19.5, _A100),
    Peak(r"A800-SXM4-[48]0GB|A800 80GB PCIe|A800-PCIE-[48]0GB", 312, 312, 156, 19.5, "NVIDIA A800 datasheet"),
    Peak(r"A30", 165, 165, 82, 10.3, "NVIDIA A30 datasheet"),
    Peak(r"A40", 149.7, 149.7, 74.8, 37.4, "NVIDIA A40 datasheet"),
    Peak(r"A10", 125, 125, 62.5, 31.2, "NVIDIA A10 datasheet"),
    Peak(r"H100 80GB HBM3", 989.4, 989.4, 494.7, 66.9, _H100 + " (SXM)"),
    Peak(r"H100 PCIe", 756, 756, 378, 51.2, _H100 + " (PCIe)"),
    Peak(r"H100 NVL", 835.5, 835.5, 417.5, 60, _H100 + " (NVL)"),
    Peak(r"H800", 989.4, 989.4, 494.7, 66.9, "NVIDIA H800 datasheet (SXM)"),
    Peak(r"H800 PCIe", 756, 756, 378, 51.2, "NVIDIA H800 datasheet (PCIe)"),
    Peak(r"H200", 989.4, 989.4, 494.7, 66.9, "NVIDIA H200 datasheet (SXM)"),
    Peak(r"H200 NVL", 835.5, 835.5, 417.5, 60, "NVIDIA H200 datasheet (NVL)"),
    Peak(r"H20|H20-3e", 148, 148, 74, 44, "NVIDIA H20 datasheet"),
    Peak(r"GH200 [0-9]+GB", 989.4, 989.4, 494.7, 66.9, "NVIDIA GH200 datasheet"),
    Peak(r"B200", 2250, 2250, 1100, 80, _BLACKWELL + " (HGX B200)"),
    Peak(r"GB200", 2500, 2500, 1250, 90, _BLACKWELL + " (GB200)"),
    Peak(r"B300 SXM6 AC|B300", 2250, 2250, 1125, 75, "NVIDIA HGX B300 datasheet, an eighth"),
    Peak(r"L40S", 362.05, 362.05, 183, 91.6, "NVIDIA L40S datasheet"),
    Peak(r"L40", 181.05, 181.05, 90.5, 90.5, "NVIDIA L40 datasheet"),
    Peak(r"L20", 119.5, 119.5, 59.8, 59.8, "NVIDIA L20 datasheet"),
    Peak(r"L4", 121, 121, 60, 30.3, "NVIDIA L4 datasheet"),
    Peak(r"RTX A6000", 154.8, 154.8, 77.4, 38.7, _GA102),
    Peak(r"RTX 6000 Ada Generation", 364.2, 364.2, 182.1, 91.1, _ADA),
    Peak(r"GeForce RTX 3090", 71, 71, 35.6, 35.6, _GA102),
    Peak(r"GeForce RTX 4080", 97.5, 97.5, 48.7, 48.7, _ADA),
    Peak(r"GeForce RTX 4090", 165.2, 165.2, 82.6, 82.6, _ADA),
    Peak(r"GeForce RTX 5090", 209.5, 209.5, 104.8, 104.8, "NVIDIA RTX Blackwell GPU architecture whitepaper"),
    Peak(r"V100-SXM2-(16|32)GB", None, 125, None, 15.7, "NVIDIA V100 datasheet (SXM2)"),
    Peak(r"V100-PCIE-(16|32)GB", None, 112, None, 14, "NVIDIA V100 datasheet (PCIe)"),
    Peak(r"T4", None, 65, None, 8.1, "NVIDIA T4 datasheet"),
)


def find_peak(device_name: str) -> Peak | None:
    """The row of a GPU by the name that the driver gives it, None if it is unknown."""
    name = re.sub(r"^(NVIDIA|Tesla) ", "", device_name.strip())
    return next((peak for peak in PEAKS if re.fullmatch(peak.name, name)), None)
