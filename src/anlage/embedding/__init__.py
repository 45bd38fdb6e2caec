"""Embedding: slides and an encoder in, one bag a slide out."""
