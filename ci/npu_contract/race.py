"""A missing wait between two streams: torch_npu's sanitizer must find it, or its silence would prove nothing."""

import torch

torch.npu.set_device(0)
x = torch.rand(4, device="npu")
with torch.npu.stream(torch.npu.Stream()):
    x.mul_(2)
