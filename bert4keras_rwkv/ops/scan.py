"""Loops over time that can be differentiated, on every backend.

`keras.ops.scan` and `keras.ops.while_loop` do not serve: the first fails under TensorFlow when a step emits another
shape than its carry, the second has no reverse gradient on JAX.
"""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend


def scan(step, carry, xs):
    """Run `carry, y = step(carry, x)` over the first axis of `xs`.

    carry: a tensor or a tuple of tensors. xs: a tuple of tensors (n, ...). y: a tensor; all have the same shape.
    Returns the last carry and the y stacked to (n, ...). A step is recomputed in the backward pass (JAX): what it
    makes on the way is not kept.
    """
    return {"jax": _scan_jax, "tensorflow": _scan_tensorflow}.get(backend.name(), _scan_python)(step, carry, xs)


def _scan_jax(step, carry, xs):
    import jax

    return jax.lax.scan(jax.checkpoint(step), carry, xs)


def _scan_tensorflow(step, carry, xs):
    import tensorflow as tf

    n = xs[0].shape[0]
    if n == 1 or tf.executing_eagerly():
        return _scan_python(step, carry, xs)
    count = tf.shape(xs[0])[0] if n is None else n
    spec = _emitted(step, carry, xs)
    written = tf.TensorArray(spec.dtype, size=count, element_shape=spec.shape)

    # Arrays to read from, for the gradient of `x[i]` is as large as x, at every step.
    given = [tf.TensorArray(x.dtype, size=count, element_shape=x.shape[1:]).unstack(x) for x in xs]

    def body(i, carry, written):
        new, y = step(carry, tuple(x.read(i) for x in given))
        return (
            i + 1,
            tf.nest.map_structure(lambda x, old: tf.ensure_shape(x, old.shape), new, carry),
            written.write(i, y),
        )

    # `maximum_iterations` is what lets XLA differentiate the loop.
    _, carry, written = tf.while_loop(
        lambda i, *_: i < count,
        body,
        (tf.constant(0), carry, written),
        maximum_iterations=count,
        parallel_iterations=1,
    )
    ys = written.stack()
    ys.set_shape([n, *spec.shape])
    return carry, ys


def _emitted(step, carry, xs):
    """The shape and dtype of what one step emits, without running it."""
    import tensorflow as tf

    def spec(x):
        return tf.TensorSpec(x.shape, x.dtype)

    one = tuple(tf.TensorSpec(x.shape[1:], x.dtype) for x in xs)
    before = tf.nest.map_structure(spec, carry)
    return tf.function(step, autograph=False).get_concrete_function(before, one).structured_outputs[1]


def _scan_python(step, carry, xs):
    ys = []
    # Not `x[i]`, whose gradient is as large as x, at every step.
    for x in zip(*(ops.unstack(x) for x in xs), strict=True):
        carry, y = step(carry, x)
        ys.append(y)
    return carry, ops.stack(ys)
