"""Checkpoints of InternEvo: read in every spelling of its versions, and written for it."""
