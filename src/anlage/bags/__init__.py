"""Bags: the tile embeddings of one slide, one file a slide."""
