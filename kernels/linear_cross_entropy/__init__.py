"""Output head and loss in one: see ``evocore/ops/cross_entropy.py`` for what it must do."""
