"""Loss of given logits: see ``evocore/ops/cross_entropy.py`` for what it must do."""
