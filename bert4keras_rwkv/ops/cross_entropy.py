"""Cross-entropy over a large vocabulary, without the logits of a whole text.

Of 65,536 ids the logits of 4 texts of 512 tokens take 0.5 GB, their gradient as much again. Here a piece of the text
at a time has logits, and its part of the gradients is computed while they are there.
"""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops.backend import accumulation_dtype
from bert4keras_rwkv.ops.gradients import with_gradients
from bert4keras_rwkv.ops.scan import scan


def chunked_cross_entropy(hidden, kernel, labels, weights, chunk_len=128, kernel_trains=True, count_hits=False):
    """Sum over all tokens of weight * -log softmax(hidden . kernel)[label].

    hidden: (B, T, D). kernel: (D, V), used in hidden's dtype. labels: (B, T) int32; beyond the vocabulary the cost is
    NaN. weights: (B, T) float32; a token of weight 0 costs nothing, whatever its label. chunk_len: tokens of each row
    that have logits at a time. kernel_trains: whether kernel gets a gradient; without, it is zero and a third of the
    work is saved.
    Returns a float32 scalar (float64 for float64 inputs), differentiable in hidden and kernel. count_hits: a vector of
    two, that and the sum of the weights of tokens whose label has the largest logit.
    """
    dtype = accumulation_dtype(hidden.dtype)
    labels, weights = ops.cast(labels, "int32"), ops.cast(weights, dtype)
    shape = (2,) if count_hits else ()

    def value(hidden, kernel, labels, weights):
        def cost(h, label, weight):
            return _loss(h, label, weight, kernel, dtype, count_hits)[0]

        return _total(cost, hidden, (labels, weights), chunk_len, dtype, shape)

    def both(hidden, kernel, labels, weights):
        D, V = kernel.shape

        def step(carry, x):
            h, label, weight = x
            loss, exponentials = _loss(h, label, weight, kernel, dtype, count_hits)
            p = exponentials / ops.sum(exponentials, axis=-1, keepdims=True)
            p = p - ops.cast(ops.equal(ops.arange(V, dtype="int32"), label[..., None]), dtype)
            p = ops.cast(_weighted(p, weight[..., None]), h.dtype)
            total, slope = carry
            if kernel_trains:
                flat = ops.matmul(ops.transpose(ops.reshape(h, (-1, D))), ops.reshape(p, (-1, V)))
                slope = slope + ops.cast(flat, dtype)
            return (total + loss, slope), _through_kernel(p, kernel)

        none = ops.zeros((D, V) if kernel_trains else (1, 1), dtype)
        carry = ops.zeros(shape, dtype), none
        (total, slope), dh = _walked(step, carry, hidden, (labels, weights), chunk_len)
        slope = ops.cast(slope, kernel.dtype) if kernel_trains else ops.zeros_like(kernel)
        return total, (dh, slope, None, None)

    return with_gradients(value, both)(hidden, kernel, labels, weights)


def chunked_divergence(hidden, wanted, kernel, weights, chunk_len=128):
    """Sum over all tokens of weight * KL(p || q), p = softmax(wanted . kernel), q = softmax(hidden . kernel), in nats.

    hidden, wanted: (B, T, D), of a student and its teacher. kernel: (D, V). weights, chunk_len and what is returned: as
    for `chunked_cross_entropy`. Differentiable in hidden alone: the rest is given. Hinton et al., arXiv 1503.02531.
    """
    dtype = accumulation_dtype(hidden.dtype)
    weights = ops.cast(weights, dtype)

    def value(hidden, wanted, kernel, weights):
        def cost(h, goal, weight):
            return _divergence(h, goal, weight, kernel, dtype)[0]

        return _total(cost, hidden, (wanted, weights), chunk_len, dtype)

    def both(hidden, wanted, kernel, weights):
        def step(total, x):
            h, _, weight = x
            loss, p, q = _divergence(*x, kernel, dtype)
            return total + loss, _through_kernel(ops.cast(_weighted(q - p, weight[..., None]), h.dtype), kernel)

        total, dh = _walked(step, ops.zeros((), dtype), hidden, (wanted, weights), chunk_len)
        return total, (dh, None, None, None)

    return with_gradients(value, both)(hidden, wanted, kernel, weights)


def _loss(h, label, weight, kernel, dtype, count_hits):
    """The loss of one chunk (B, C), with hits a vector of both, and its exponentials (B, C, V), not normalised."""
    logits = _logits(h, kernel, dtype)
    exponentials = ops.exp(logits)
    known, label = known_labels(label, kernel.shape[1])
    own = ops.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    cost = ops.where(known, ops.log(ops.sum(exponentials, axis=-1)) - own, float("nan"))
    loss = ops.sum(_weighted(cost, weight))
    if count_hits:  # the largest logit is 0
        loss = ops.stack([loss, ops.sum(ops.where(own >= 0, weight, 0.0))])
    return loss, exponentials


def known_labels(labels, size):
    """Whether each label lies in 0 .. size - 1, and labels that do."""
    inside = ops.clip(labels, 0, size - 1)
    return ops.equal(labels, inside), inside


def _divergence(h, goal, weight, kernel, dtype):
    """The divergence of one chunk (B, C), and both distributions (B, C, V), the teacher's first."""
    goal, own = (_logits(x, kernel, dtype) for x in (goal, h))
    p, q = ops.exp(goal), ops.exp(own)
    below, above = ops.sum(q, axis=-1, keepdims=True), ops.sum(p, axis=-1, keepdims=True)
    p, q = p / above, q / below
    # Where the teacher gives nothing, nothing is lost, though the student's logarithm be infinite.
    cost = ops.sum(ops.where(p > 0, p * (goal - own), 0.0), axis=-1) + ops.log(below / above)[..., 0]
    return ops.sum(_weighted(cost, weight)), p, q


def _logits(h, kernel, dtype):
    """Logits (B, C, V), the largest of each token 0."""
    logits = ops.cast(ops.matmul(h, ops.cast(kernel, h.dtype)), dtype)
    return logits - ops.max(logits, axis=-1, keepdims=True)


def _weighted(x, weight):
    """x times weight, and 0 where the weight is, whatever x is."""
    return ops.where(weight > 0, x * weight, 0.0)


def _through_kernel(slope, kernel):
    """d / d hidden, from d / d logits."""
    return ops.matmul(slope, ops.transpose(ops.cast(kernel, slope.dtype)))


def _total(cost, hidden, others, size, dtype, shape=()):
    """The sum over chunks of cost(hidden, *others), a tensor of this shape."""

    def step(total, x):
        return total + cost(*x), ops.zeros((), dtype)

    return scan(step, ops.zeros(shape, dtype), _chunks(hidden, others, size))[0]


def _walked(step, carry, hidden, others, size):
    """Run `carry, dh = step(carry, (hidden, *others))` chunk by chunk. Returns the last carry and dh (B, T, D)."""
    carry, dh = scan(step, carry, _chunks(hidden, others, size))
    dh = ops.reshape(ops.moveaxis(dh, 0, 1), (ops.shape(hidden)[0], -1, hidden.shape[-1]))
    return carry, dh[:, : ops.shape(hidden)[1]]


def _chunks(hidden, others, size):
    """(B, T, ...) -> (chunks, B, size, ...) each; what is filled up at the end has weight 0."""
    T = ops.shape(hidden)[1]
    if isinstance(T, int):
        size = min(size, T)
    count = (T + size - 1) // size

    def split(x):
        x = ops.pad(x, ((0, 0), (0, count * size - T)) + ((0, 0),) * (len(x.shape) - 2))
        return ops.moveaxis(ops.reshape(x, (-1, count, size, *x.shape[2:])), 1, 0)

    return tuple(split(x) for x in (hidden, *others))
