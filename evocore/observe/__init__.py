"""Trackers, progress and the doctor: what people see of a run."""
