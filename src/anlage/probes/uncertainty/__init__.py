"""Intervals and tests that resample patients, never tiles."""
