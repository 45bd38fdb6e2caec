"""Divisions of rows into sides that never cut a patient in two."""
