"""Slides: one interface over every format, tissue masks, the catalogue of a collection."""
