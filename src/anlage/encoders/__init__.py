"""Encoders: a model with its weights, its transform and where it came from."""
