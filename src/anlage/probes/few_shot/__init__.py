"""Classifiers from class vectors: prototypes, SimpleShot, MI-SimpleShot, zero-shot."""
