"""Ascend NPUs (910B) as a device plug-in: device, collectives, kernels."""
