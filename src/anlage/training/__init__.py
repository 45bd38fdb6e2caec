"""Training: one file a stage, one readable loop."""
