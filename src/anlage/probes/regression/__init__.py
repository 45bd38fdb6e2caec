"""Numbers instead of classes: ridge regression and the Cox model."""
