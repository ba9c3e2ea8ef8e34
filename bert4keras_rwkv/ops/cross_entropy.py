"""Cross-entropy over a large vocabulary, without the logits of a whole text.

Of 65,536 ids the logits of 4 texts of 512 tokens take 0.5 GB, their gradient as much again. Here a piece of the text
at a time has logits, and its part of the gradients is computed while they are there.
"""

from keras import ops

from bert4keras_rwkv.ops.backend import accumulation_dtype
from bert4keras_rwkv.ops.own_gradient import with_gradients
from bert4keras_rwkv.ops.scan import scan


def chunked_cross_entropy(hidden, kernel, labels, weights, chunk_len=128, kernel_trains=True):
    """Sum over all tokens of weight * -log softmax(hidden . kernel)[label].

    hidden: (B, T, D). kernel: (D, V), used in hidden's dtype. labels: (B, T) int32 below V. weights: (B, T) float32; a
    token of weight 0 costs nothing, whatever its label. chunk_len: tokens of each row that have logits at a time.
    kernel_trains: whether kernel gets a gradient; without, it is zero and a third of the work is saved.
    Returns a float32 scalar (float64 for float64 inputs), differentiable in hidden and kernel.
    """
    dtype = accumulation_dtype(hidden.dtype)
    weights = ops.cast(weights, dtype)

    def value(hidden, kernel, labels, weights):
        def step(total, x):
            loss, _ = _loss(*x, kernel, dtype)
            return total + loss, ops.zeros((), dtype)

        return scan(step, ops.zeros((), dtype), _chunks(hidden, labels, weights, chunk_len))[0]

    def both(hidden, kernel, labels, weights):
        D, V = kernel.shape

        def step(carry, x):
            h, label, weight = x
            loss, exponentials = _loss(h, label, weight, kernel, dtype)
            p = exponentials / ops.sum(exponentials, axis=-1, keepdims=True)
            p = p - ops.cast(ops.equal(ops.arange(V, dtype="int32"), label[..., None]), dtype)
            p = ops.cast(ops.where(weight[..., None] > 0, p * weight[..., None], 0.0), h.dtype)
            total, slope = carry
            if kernel_trains:
                flat = ops.matmul(ops.transpose(ops.reshape(h, (-1, D))), ops.reshape(p, (-1, V)))
                slope = slope + ops.cast(flat, dtype)
            return (total + loss, slope), ops.matmul(p, ops.transpose(ops.cast(kernel, h.dtype)))

        none = ops.zeros((D, V) if kernel_trains else (1, 1), dtype)
        (total, slope), dh = scan(step, (ops.zeros((), dtype), none), _chunks(hidden, labels, weights, chunk_len))
        dh = ops.reshape(ops.moveaxis(dh, 0, 1), (ops.shape(hidden)[0], -1, D))[:, : ops.shape(hidden)[1]]
        slope = ops.cast(slope, kernel.dtype) if kernel_trains else ops.zeros_like(kernel)
        return total, (dh, slope, None, None)

    return with_gradients(value, both)(hidden, kernel, labels, weights)


def _loss(h, label, weight, kernel, dtype):
    """The loss of one chunk (B, C), and its exponentials (B, C, V), not normalised."""
    logits = ops.cast(ops.matmul(h, ops.cast(kernel, h.dtype)), dtype)
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    exponentials = ops.exp(logits)
    own = ops.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    cost = ops.log(ops.sum(exponentials, axis=-1)) - own
    return ops.sum(ops.where(weight > 0, weight * cost, 0.0)), exponentials


def _chunks(hidden, labels, weights, size):
    """(B, T, ...) -> (chunks, B, size, ...) each; what is filled up at the end has weight 0."""
    T = ops.shape(hidden)[1]
    if isinstance(T, int):
        size = min(size, T)
    count = (T + size - 1) // size

    def split(x):
        x = ops.pad(x, ((0, 0), (0, count * size - T)) + ((0, 0),) * (len(x.shape) - 2))
        return ops.moveaxis(ops.reshape(x, (-1, count, size, *x.shape[2:])), 1, 0)

    return split(hidden), split(ops.cast(labels, "int32")), split(weights)
