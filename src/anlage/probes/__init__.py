"""Probes: arrays in, numbers out. No file, data set or encoder is known here."""
