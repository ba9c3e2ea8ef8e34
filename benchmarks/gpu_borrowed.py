"""The recurrence of our models on the kernels of other packages, so that nothing but the kernel differs.

What is asked of them is what training and reading a whole prompt need: several tokens, no masks. The rest stays ours.
"""

import importlib
import shutil

import numpy as np

LARGEST_ERROR = 5e-2  # of the largest number, for inputs of bfloat16
SLOWEST = -0.6065306597126334  # RWKV-7's log decays are not below this


def borrow(package, version, training):
    """Let wkv6 or wkv7 run on the kernel of 'fla-core' or 'rwkv_ops'. Raises RuntimeError if it is not the loop.

    training: the state is empty before a text, and is not asked for after it.
    """
    from bert4keras_rwkv.ops import backend
    from bert4keras_rwkv.ops.kernels.native import native

    kernel = {"fla-core": fla, "rwkv_ops": rwkv_ops}[package](version, training)

    def run(name, xs, state, present=None, reset=None, start=None):
        if xs[0].shape[1] == 1 or present is not None or reset is not None:
            return native(name, xs, state, present, reset, start)
        from keras import ops

        xs = [ops.cast(x, "bfloat16") for x in xs]
        y, last = kernel(*xs, state)
        return ops.cast(y, "float32"), ops.cast(last, "float32")

    error = difference(run, version, training)
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"the kernel of {package} differs from the loop by {error:.1e} on {backend.name()}")
    importlib.import_module(f"bert4keras_rwkv.ops.wkv{version}").native = run


def fla(version, training):
    """By chunks, as fla's layers call them."""
    if version == "6":
        from fla.ops.rwkv6 import chunk_rwkv6

        def run(r, w, k, v, u, state):
            return chunk_rwkv6(r, k, v, w, u, scale=1.0, initial_state=state, output_final_state=True)

        return run
    from fla.ops.rwkv7 import chunk_rwkv7

    def run(r, w, k, v, a, b, state):
        options = {"initial_state": state, "output_final_state": True, "lower_bound": SLOWEST - 1e-2}  # as rounded
        return chunk_rwkv7(r, w, k, v, a, b, **options)

    return run


def rwkv_ops(version, training):
    """Its CUDA kernels where nvcc is there to compile them, else those of Triton or Pallas.

    It takes log(-w) for w. Its RWKV-7 has the state turned, and its RWKV-6 no gradient with a state.
    """
    import rwkv_ops as package  # with KERNEL_TYPE=native, for else it compiles all that it has
    from keras import ops

    kind = "cuda" if shutil.which("nvcc") else "native"
    if version == "6":
        kernel = package.get_rwkv6_kernel(HEAD_SIZE=64, KERNEL_TYPE=kind)

        def run(r, w, k, v, u, state):
            r, w, k, v = (ops.reshape(x, (*x.shape[:2], -1)) for x in (r, ops.log(-w), k, v))
            given = {} if training else {"initial_state": state, "output_final_state": True}
            found = kernel(r, k, v, w, u, **given)
            y, last = (found, state) if training else found
            return ops.reshape(y, (*y.shape[:2], -1, 64)), last

        return run
    kernel, _ = package.get_generalized_delta_rule(HEAD_SIZE=64, KERNEL_TYPE=kind)

    def run(r, w, k, v, a, b, state):
        y, last = kernel(r, ops.log(-w), k, v, a, b, initial_state=ops.swapaxes(state, -1, -2))
        return y, ops.swapaxes(last, -1, -2)

    return run


def difference(run, version, training):
    """The largest difference of y, and of the last state, from the loop, as a share of the largest number."""
    from keras import ops

    from bert4keras_rwkv.ops.kernels.check import LOOPS, inputs

    name = f"wkv{version}"
    xs, state, _ = inputs(np.random.default_rng(0), name, (2, 64, 2, 64))
    xs = [np.maximum(x, SLOWEST) if i == 1 else x for i, x in enumerate(xs)]
    xs, state = [ops.cast(x, "bfloat16") for x in xs], ops.convert_to_tensor(0 * state if training else state)
    want = LOOPS[name](*(ops.cast(x, "float32") for x in xs), state)[: 1 if training else 2]
    pairs = zip(run(name, xs, state), want, strict=False)
    pairs = [[ops.convert_to_numpy(ops.cast(x, "float32")) for x in pair] for pair in pairs]
    return float(max(np.max(np.abs(got - want)) / np.max(np.abs(want)) for got, want in pairs))
