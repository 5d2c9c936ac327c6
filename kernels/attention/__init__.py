"""Attention over packed documents: see ``evocore/ops/attention.py`` for what it must do."""
