"""Activation memory: what blocks keep for backward between their forward and their backward, and where.

Of one block and one micro-batch, with T tokens of this rank, D hidden, N heads of H, e bytes of an element (r of the
residual stream), per block:

- recomputed: its inputs, ``T D (e + r)``; the model's first block has no residual stream yet.
- recomputed but for attention: besides, attention's output ``T N H e`` and what its kernel keeps beyond its inputs:
  flash attention the log-sum-exp, ``4 T N``; N H is that of this rank's heads where heads or weights are divided.
- attention on the host: as recomputed, and these last two on the host.
- on the host: nothing, but for the one or two blocks whose copies are under way.

A block for which both is asked is both: recomputed, with its inputs and kept attention on the host.
"""

from evocore.parallel.activations.blocks import ActivationMemory, ActivationOptions

__all__ = ["ActivationMemory", "ActivationOptions"]
