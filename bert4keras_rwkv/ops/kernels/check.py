"""Every native kernel of this machine: recurrences against the plain loop (outputs, all gradients, masks and document
starts), products with packed matrices against the product with the matrix unpacked.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.compile import compiled
from bert4keras_rwkv.ops.gradients import gradients
from bert4keras_rwkv.ops.kernels import cuda
from bert4keras_rwkv.ops.kernels.library import library
from bert4keras_rwkv.ops.kernels.native import RECURRENCES, device, native, product
from bert4keras_rwkv.ops.matmul import Scheme, Slope, matmul, pack, tensors_of
from bert4keras_rwkv.ops.wkv4 import wkv4_loop
from bert4keras_rwkv.ops.wkv6 import wkv6_loop
from bert4keras_rwkv.ops.wkv7 import wkv7_loop
from bert4keras_rwkv.packing import MOST, UNIT

LOOPS = {"wkv4": wkv4_loop, "wkv6": wkv6_loop, "wkv7": wkv7_loop}
# (B, T, H, N): one token; several, with chunks that are not full; heads that do not fill a vector.
SHAPES = ((2, 1, 2, 64), (2, 37, 3, 64), (1, 32, 2, 5))
MASKS = ("none", "reset", "both")
# Of products: the schemes, and by which kernels so many rows are multiplied, of so many numbers for so many outputs.
SCHEMES = Scheme(16), Scheme(8), Scheme(8, group=64), Scheme(4), Scheme(4, group=64), Scheme(4, least=False)
ROWS = {"product": (1, 3, 8), "product_many": (17, 64)}
INPUTS, OUTPUTS = 200, 70
SEED = 7
# Of the largest number of a tensor. Both sides round to float32 at every token, and add in another order. A gradient in
# bfloat16 is rounded to 8 binary digits, and of the loop each term of a sum is. Products give float32, whatever x is.
LARGEST_ERROR = {"float32": 2e-5, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Finding:
    """What a kernel of an instruction set, or of a GPU, gave for one case.

    shape: as in SHAPES, of a product rows, inputs and outputs. case: the masks, or how the matrix is packed. dtype: of
    the inputs. error: the largest, relative to the largest number.
    """

    kernel: str
    level: str
    shape: tuple[int, ...]
    case: str
    dtype: str
    error: float

    @property
    def right(self):
        dtype = self.dtype if self.kernel in RECURRENCES else "float32"
        return self.error <= LARGEST_ERROR[dtype]  # not so for NaN


def check_kernels(levels=None, names=None, shapes=SHAPES, masks=MASKS):
    """A `Finding` for each recurrence, shape, way of masking and instruction set (None: all that there are here).

    Of the last way of masking each shape is done with inputs in bfloat16, too. The best instruction set is chosen
    afterwards.
    """
    here = _here()
    try:
        for name in RECURRENCES if names is None else names:
            cases = [(shape, mask, "float32") for shape in shapes for mask in masks]
            for case in [*cases, *((shape, masks[-1], "bfloat16") for shape in shapes)]:
                tensors, forms = _forms(name, *case)
                with backend.exact_products():
                    want = [_numpy(x) for x in forms["loop"](*tensors)]
                for level in here.levels() if levels is None else levels:
                    here.choose(level)
                    got = [_numpy(x) for x in forms["native"](*tensors)]
                    yield Finding(name, level, *case, float(np.max(list(map(_error, got, want)))))
    finally:
        here.choose(here.levels()[0])


def check_products(levels=None):
    """A `Finding` for each kernel of a product with a packed matrix, number of rows and instruction set."""
    here, generator = _here(), np.random.default_rng(SEED)
    try:
        for scheme in SCHEMES:
            packed = pack(_normal(generator, OUTPUTS, INPUTS), scheme)
            packed = {name: ops.convert_to_tensor(array) for name, array in packed.items()}
            for kind, several in ROWS.items():
                if device() == "cuda" and cuda.product_of(several[0]) != kind:
                    continue
                name = f"{kind}_{scheme.name}"
                run = compiled(partial(product, name, tensors=tensors_of(packed, scheme), slope=Slope(scheme, INPUTS)))
                for rows, dtype in [*((rows, "float32") for rows in several), (several[-1], "bfloat16")]:
                    x = ops.cast(ops.convert_to_tensor(_far_from_halves(generator, rows)), dtype)
                    with backend.exact_products():
                        want = _numpy(matmul(x, packed, scheme, "ops"))
                    for level in here.levels() if levels is None else levels:
                        here.choose(level)
                        error = _error(_numpy(run(x)), want)
                        yield Finding(name, level, (rows, INPUTS, OUTPUTS), str(scheme), dtype, error)
    finally:
        here.choose(here.levels()[0])


def _far_from_halves(generator, rows):
    """Numbers (rows, INPUTS) which all round to the same of 255, though this or that division is not exact."""
    units = -(-INPUTS // UNIT)
    whole = generator.integers(1 - MOST[8], MOST[8], (rows, units, UNIT)) + generator.uniform(
        -0.2, 0.2, (rows, units, UNIT)
    )
    whole[..., 0] = MOST[8]
    scales = 2.0 ** generator.integers(-9, 3, (rows, units, 1))
    return (whole * scales).reshape(rows, -1)[:, :INPUTS].astype("float32")


def _here():
    """What knows the instruction sets here, and chooses among them."""
    return _Gpu() if device() == "cuda" else library()


class _Gpu:
    """What `library.Library` says of instruction sets: there is one."""

    def levels(self):
        return [f"sm_{cuda.device().architecture}"]

    def choose(self, level):
        pass


def _forms(name, shape, mask, dtype):
    """The tensors of a case, and a function of them for each form, which gives y, the last state and all gradients."""
    generator = np.random.default_rng(SEED)
    xs, state, start = inputs(generator, name, shape)
    B, T = shape[:2]
    present = generator.random((B, T)) > 0.3 if mask in ("present", "both") else None
    reset = generator.random((B, T)) > 0.8 if mask in ("reset", "both") else None
    tensors = [ops.convert_to_tensor(x) for x in (*xs, state, *([start] if mask == "both" else []))]
    tensors[: len(xs)] = [ops.cast(x, dtype) for x in tensors[: len(xs)]]
    weights = [ops.convert_to_tensor(_normal(generator, *x)) for x in (xs[0].shape, state.shape)]

    def form(function):
        def run(*tensors):
            return function(tensors[: len(xs)], tensors[len(xs)], present, reset, *tensors[len(xs) + 1 :])

        def total(*tensors):
            return sum(ops.sum(x * weight) for x, weight in zip(run(*tensors), weights, strict=True))

        forward, backward = compiled(run), gradients(total)
        return lambda *tensors: [*forward(*tensors), *backward(*tensors)]

    def loop(xs, *rest):
        return LOOPS[name](*(ops.cast(x, "float32") for x in xs), *rest)

    return tensors, {"native": form(lambda xs, *rest: native(name, xs, *rest)), "loop": form(loop)}


def _numpy(x):
    return ops.convert_to_numpy(ops.cast(ops.stop_gradient(x), "float32")).astype("float64")


def _error(got, want):
    largest = np.max(np.abs(want), initial=0.0)
    return float(np.max(np.abs(got - want), initial=0.0) / (largest or 1.0))


def inputs(generator, name, shape):
    """Inputs, state and start of a recurrence as float32, for a shape (B, T, H, N); RWKV-4's channels are H * N.

    Decays are from almost none to almost all, and of RWKV-4 some states are empty.
    """
    B, T, H, N = shape
    normal = partial(_normal, generator)
    if name == "wkv4":
        D = H * N
        state, start = normal(B, 3, D), normal(3, D)
        state[:, 1], start[1] = np.abs(state[:, 1]), np.abs(start[1])
        state[:1, :2, : D // 3], start[:2, D // 2 :] = 0.0, 0.0
        return (3 * normal(B, T, D), normal(B, T, D), -np.exp(2 * normal(D)), normal(D)), state, start
    r, k, v = (normal(B, T, H, N) for _ in range(3))
    w, state, start = -np.exp(2 * normal(B, T, H, N) - 1), normal(B, H, N, N), normal(H, N, N)
    if name == "wkv6":
        return (r, w, k, v, normal(H, N)), state, start
    kk = normal(B, T, H, N)
    kk /= np.linalg.norm(kk, axis=-1, keepdims=True)
    return (r, w, k, v, -kk, kk * generator.random((B, T, H, N), "float32")), state, start


def _normal(generator, *shape):
    return generator.standard_normal(shape).astype("float32")
