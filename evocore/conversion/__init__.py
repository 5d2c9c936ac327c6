"""Whole checkpoints from one house into the other: what belongs together besides weights, and in which order.

The weights themselves are moved by ``evocore.checkpoint.hugging_face`` and ``evocore.checkpoint.internevo``.
"""
