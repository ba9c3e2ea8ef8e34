"""Tensor functions: tensors in, tensors out, no weights. Only they know the backend."""
