"""Conversations as training data: their shapes in files, and the templates that write them as tokens."""
