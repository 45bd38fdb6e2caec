"""Augmentation on the pixels' device, keyed by (seed, g)."""
