"""Bytes that one rank holds for its part of a model, by arithmetic: parameters, gradients, optimizer state.

Parameters live in buckets (see ``evocore.parallel.buckets``), each padded so that it divides evenly, or as rows of
matrices where they are fully sharded. What is held all the time is exact; what is whole for moments of a step, where
ranks share weights, is a bound. Not counted: activations, messages, and what kernels and collectives need for
themselves.
"""

from evocore.parallel.memory.holdings import Holding, memory

__all__ = ["Holding", "memory"]
