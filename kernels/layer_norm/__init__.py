"""Layer normalisation: see ``evocore/ops/layer_norm.py`` for what it must do."""
