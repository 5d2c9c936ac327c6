"""Rotary position embedding: see ``evocore/ops/rotary.py`` for what it must do."""
