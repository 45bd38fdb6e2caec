"""The neural networks: tensors in, tensors out."""
