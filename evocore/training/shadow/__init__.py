"""Shadow mode: on some steps the references run beside the chosen kernels, and every call leaves a fingerprint."""

from evocore.training.shadow.shadow import Shadow

__all__ = ["Shadow"]
