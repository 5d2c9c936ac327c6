"""Kernels for devices of others."""
