"""Readers of the slide formats, and the table of them."""
