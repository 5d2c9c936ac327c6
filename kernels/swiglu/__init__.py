"""SiLU-gated linear unit: see ``evocore/ops/glu.py`` for what it must do."""
