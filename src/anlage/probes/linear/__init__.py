"""Linear classifiers on frozen embeddings, each after its published protocol."""
