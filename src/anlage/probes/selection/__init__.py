"""Calibration, prediction sets and thresholds, chosen on data that is not the test side."""
