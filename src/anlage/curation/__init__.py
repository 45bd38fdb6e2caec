"""Which tiles are worth training on: duplicates, clusters, balanced samples, retrieval."""
