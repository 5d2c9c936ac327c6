"""Checkpoints of other houses: read by the rectangles that a rank needs, through a family's table of weights."""
