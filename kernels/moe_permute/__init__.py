"""Tokens to rows sorted by expert, and back: see ``evocore/ops/moe.py`` for what it must do."""
