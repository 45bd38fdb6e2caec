"""Pretraining of a slide encoder: one stage."""
