"""Keras layers: the residual block and, one version a file, its two mixers."""
