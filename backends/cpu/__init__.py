"""The CPU as a device plug-in: device, collectives, kernels."""
