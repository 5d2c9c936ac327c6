"""Operator contracts, and the choice of one kernel for each request.

Each contract module says what an operator means; what computes it lives in ``evocore.kernels``.
"""
