"""NVIDIA GPUs as a device plug-in: device, collectives, kernels."""
