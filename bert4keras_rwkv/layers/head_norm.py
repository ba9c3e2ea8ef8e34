"""Normalisation of each head of each token."""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.base import Layer


class HeadNorm(Layer):
    """(B, T, H, N) -> (B, T, H * N): mean 0 and variance 1 over N, then an affine map over H * N.

    This is what GroupNorm(H) does to (B * T, H * N); Keras' GroupNormalization on (B, T, C) would normalise over T.
    Computed in the dtype that comes in (float32 behind the recurrence).
    """

    def __init__(self, epsilon, gamma_initializer="ones", beta_initializer="zeros", **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.gamma_initializer, self.beta_initializer = gamma_initializer, beta_initializer

    def build(self, shape):
        self.gamma = self.add("gamma", (shape[-2] * shape[-1],), self.gamma_initializer)
        self.beta = self.add("beta", (shape[-2] * shape[-1],), self.beta_initializer)

    def call(self, y):
        mean = ops.mean(y, axis=-1, keepdims=True)
        centred = y - mean
        variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
        y = centred * ops.rsqrt(variance + self.epsilon)
        y = ops.reshape(y, (*ops.shape(y)[:2], -1))
        return y * ops.cast(self.gamma, y.dtype) + ops.cast(self.beta, y.dtype)

    def compute_output_shape(self, shape):
        return (*shape[:-2], shape[-2] * shape[-1])
