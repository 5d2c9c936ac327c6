"""Layers that declare the role that they play and the ops that they need, and know nothing of parallelism."""
