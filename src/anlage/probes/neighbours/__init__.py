"""Nearest neighbours: exact search, the kNN probe, retrieval."""
