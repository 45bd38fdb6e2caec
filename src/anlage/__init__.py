"""anlage: train, run and judge foundation models of pathology, from slides to a report."""

__version__ = "0.1.0"
