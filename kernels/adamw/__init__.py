"""AdamW step for a list of tensors: see ``evocore/ops/adamw.py`` for what it must do."""
