"""Many tiles to one slide: poolings over packed bags of different lengths."""
