"""Tensor functions: tensors in, tensors out, no weights. Only they and `generation.compile` know the backend."""
