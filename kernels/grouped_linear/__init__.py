"""One matrix product per expert: see ``evocore/ops/grouped_linear.py`` for what it must do."""
