"""Tiles: where they lie, which are drawn, how they are read and augmented."""
