"""What the projections of a model multiply while it reads a text, of which quantisation takes account.

The text is read block by block, all of it by one block before the next: so the numbers of one block are in memory at a
time, whatever the depth.
"""

import contextlib
import functools

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops.compile import no_gradient

MOST = 1 << 14  # tokens that are read; more change little
LENGTH, LANES = 256, 8  # tokens read at once, and parts of the text side by side
SHARE = 0.01  # of the mean square of all inputs, that each has at least: what was silent here may speak elsewhere


def moments_of_inputs(backbone, layers, ids, whole=False):
    """Yield (path, moments) for each of `layers`, path -> projection of a built backbone, block by block.

    ids: (N,) int, of which the first `MOST` are read. moments: the mean square of each input (inputs,), or, if whole,
    the second moments (inputs, inputs), float32, with `SHARE` of their mean added to each square.

    Raises:
        ValueError: numbers that are not finite.
    """
    ids = lanes(np.asarray(ids, "int32")[:MOST])
    pieces = [ids[:, start : start + LENGTH] for start in range(0, ids.shape[1], LENGTH)]
    with no_gradient():
        read = [backbone.enter(ops.convert_to_tensor(piece)) for piece in pieces]
        for i, (block, state) in enumerate(zip(backbone.blocks, backbone.start(len(ids)), strict=True)):
            prefix = f"blocks/{i}/"
            sums = {path: Moments(whole) for path in layers if path.startswith(prefix)}
            with contextlib.ExitStack() as stack:
                for path, found in sums.items():
                    stack.enter_context(_watched(layers[path], found.add))
                for n, (x, side) in enumerate(read):
                    x, state, side = block(x, state, side)
                    read[n] = x, side
            yield from ((path, found.mean(path)) for path, found in sums.items())
        if "head" in layers:
            head = Moments(whole)
            for x, _ in read:
                head.add(backbone.ln_out(x))
            yield "head", head.mean("head")


def lanes(ids):
    """ids (N,) as rows side by side, (B, T): at most `LANES`, each of `LENGTH` tokens or more if there are so many.

    Up to `LENGTH` tokens a row are left out, so that all pieces have one shape.
    """
    if not len(ids):
        raise ValueError("There is no token to calibrate with. Give a text.")
    rows = min(LANES, max(1, len(ids) // LENGTH))
    length = len(ids) // rows
    length = length // LENGTH * LENGTH or length
    return ids[: rows * length].reshape(rows, length)


class Moments:
    """Sums of squares of vectors (..., inputs), or of their outer products."""

    def __init__(self, whole):
        self.whole, self.sum, self.count = whole, 0.0, 0

    def add(self, x):
        """Vectors, a tensor."""
        x = np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")))
        x = x.reshape(-1, x.shape[-1])
        self.sum = self.sum + (x.T @ x if self.whole else np.square(x).sum(0))
        self.count += len(x)

    def mean(self, path):
        """What `moments_of_inputs` yields. path: for errors."""
        found = self.sum / self.count
        squares = np.diagonal(found) if self.whole else found
        if not np.isfinite(squares).all():
            raise ValueError(
                f"'{path}' multiplies what is no number, with which nothing can be calibrated. Compute in float32."
            )
        least = SHARE * squares.mean() or 1.0
        return (found + least * np.eye(len(found)) if self.whole else found + least).astype("float32")


@contextlib.contextmanager
def _watched(layer, told):
    """While it lasts, `told` is called with what the layer is called with."""
    call = layer.call

    @functools.wraps(call)
    def watched(x, *args, **kwargs):
        told(x)
        return call(x, *args, **kwargs)

    layer.call = watched
    try:
        yield
    finally:
        del layer.call
