"""Metrics of predictions, each one fast to recompute under weights of groups."""
