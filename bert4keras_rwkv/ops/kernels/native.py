"""The recurrences on native kernels: what a kernel takes and gives, with gradients, on JAX and PyTorch.

A kernel takes the inputs of a recurrence, each with a batch axis, its initial state, the state that documents begin
with and the flags of tokens; what is not given is empty. It gives y and the last state and, where a gradient is wanted,
what the kernel of the gradient takes beside all this. src/host.cc compares the shapes.
"""

import threading
from dataclasses import dataclass

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.chunks import real_resets
from bert4keras_rwkv.ops.kernels import cuda, on_jax, on_torch
from bert4keras_rwkv.ops.kernels.kept import NoLibraryError
from bert4keras_rwkv.ops.kernels.library import library
from bert4keras_rwkv.ops.kernels.on_torch import TAKEN

CHUNK = 32  # as in src/: tokens between two states that are kept
ABSENT, RESET = 1, 2
ON = ("jax", "torch")


@dataclass(frozen=True)
class Recurrence:
    """What there are kernels of. A letter is a size, for instance of x: B batch, T tokens, C chunks, H heads, N, D.

    inputs: the shapes of the inputs, state: of the state, kept: of what the gradient needs of the forward pass.
    """

    name: str
    inputs: tuple[str, ...]
    state: str
    kept: tuple[str, ...]

    @property
    def y(self):
        return self.inputs[0]

    @property
    def decay(self):
        """The number of the input that may have another dtype than those beside it, on a GPU; None: there is none."""
        return 1 if "N" in self.state else None

    def sizes(self, x):
        """The size of each letter, for the first input x."""
        found = dict(zip(self.inputs[0], x.shape, strict=True))
        return {**found, "C": -(-found["T"] // CHUNK), "3": 3}

    def shape(self, letters, sizes):
        return tuple(sizes[letter] for letter in letters)

    def results(self, sizes, keep):
        """The shapes of what the kernel gives, all float32; what is not to be kept is empty."""
        kept = [self.shape(letters, sizes) if keep else (0,) for letters in self.kept]
        return [self.shape(self.y, sizes), self.shape(self.state, sizes), *kept]


def _matrix(name, inputs, *kept):
    return Recurrence(name, inputs, "BHNN", ("BHCNN", *kept))


X = "BTHN"
RECURRENCES = {
    found.name: found
    for found in (
        Recurrence("wkv4", ("BTD", "BTD", "BD", "BD"), "B3D", ("BC3D",)),
        _matrix("wkv6", (X, X, X, X, "BHN")),
        _matrix("wkv7", (X,) * 6, X),
    )
}


def why_not(dtype=None, on=None):
    """Why no native kernel runs here for inputs of a dtype (None: any), one sentence; None if one does.

    on: the device on which they lie, as `backend.device_of` says.
    """
    if backend.name() not in ON:
        return f"Native kernels run on JAX and PyTorch, and Keras runs on {backend.name()}."
    where = device(on)
    if where not in ("cpu", "cuda"):
        return f"Native kernels are for CPUs and GPUs of NVIDIA, and arrays live on another device ({where}) here."
    if dtype is not None and backend.accumulation_dtype(dtype) == "float64":
        return "Native kernels compute in float32, and the inputs are float64."
    try:
        library()
        if where == "cuda":
            cuda.compiler()
    except NoLibraryError as error:
        return str(error)
    return None


def unfit(shape, on=None):
    """The same for inputs of a shape."""
    if not all(isinstance(size, int) for size in shape):
        return "This program is made for sizes that are not known yet, for another process: an export."
    if len(shape) == 4 and device(on) == "cuda" and shape[-1] > cuda.LARGEST_HEAD:
        return f"The kernels of a GPU are for heads of up to {cuda.LARGEST_HEAD} numbers, and these have {shape[-1]}."
    return None


def device(on=None):
    """'cpu', 'cuda' or another word for the device `on` of `backend.device_of`; None, or no memory: the default one."""
    return _here() if on in (None, "meta") else backend.kind_of(on)


@backend.once_while_tracing
def _here():
    """`backend.device_kind`, asked once, unless a device was named."""
    if backend.KIND.get() is not None:
        return backend.device_kind()
    if "here" not in _device:
        _device["here"] = backend.device_kind()
    return _device["here"]


_device = {}


def native(name, xs, state, present=None, reset=None, start=None):
    """A recurrence of `RECURRENCES` on its kernel: y and the last state, float32.

    xs: its inputs, in its order, those without a batch axis (RWKV-6's u, RWKV-4's w and u) without it. state, present,
    reset, start: as in `ops.wkv6.wkv6`.
    """
    recurrence = RECURRENCES[name]
    first = _of(xs[0], TAKEN)
    batch, others = ops.shape(first)[0], [_of(x, TAKEN, first) for x in xs[1:]]
    xs = [_with_batch(x, letters, batch) for x, letters in zip([first, *others], recurrence.inputs, strict=True)]
    if device(backend.device_of(first)) == "cuda":
        xs = _alike(recurrence, xs)
    state, begin = _with_batch(_of(state, like=first), recurrence.state, batch), backend.nothing("float32", first)
    if reset is not None and start is not None:
        begin = _with_batch(_of(start, like=first), recurrence.state, batch)
    return differentiable(name)(*xs, state, begin, _flags(present, reset, first))


def differentiable(name):
    """The function of a recurrence's tensors, (*xs, state, start, flags) -> (y, state), with gradients."""
    _define(name)
    return _differentiable[name]


@backend.once_while_tracing
def _define(name):
    """Once in a process, and outside of what is traced."""
    if name not in _differentiable:
        with _defining:
            if name not in _differentiable:
                on = {"jax": on_jax, "torch": on_torch}[backend.name()]
                _differentiable[name] = on.differentiable(RECURRENCES[name])


_defining = threading.Lock()
_differentiable = {}  # plain dicts here and in library.py: `torch.compile` does not see through `functools.cache`


def product(name, x, tensors, slope):
    """x (R, I) times a matrix, by the kernel `name`: (R, O) float32, or None: a gradient is wanted that it has not.

    tensors: a packed matrix, see `ops.matmul`, or one (I, O). A kernel for many rows takes them as `round_rows` leaves
    them. slope: a function of the slope of the result, x and `tensors` that gives theirs, or None of what has none; it
    is compared and hashed.
    """
    x = _of(x, TAKEN)
    if backend.name() == "jax":
        return on_jax.product(name, slope)(x, *tensors)
    if any(backend.needs_gradient(tensor) for tensor in (x, *tensors)):
        return None
    return on_torch.product(name)(x, tensors)


def multiplies_many(bits):
    """Whether this processor multiplies numbers of so many bits faster, for many rows too, than their floats."""
    level = library().levels()[0]
    return level in ("bf16", "vnni") or (bits < 16 and level in ("avx512", "avxvnni", "avx2"))


def _of(x, dtypes=TAKEN[:1], like=None):
    """x as a tensor of one of these dtypes: its own, or else the first. In a decoding loop this is half of the cost.

    like: a tensor beside which one lies that is made.
    """
    x = x if ops.is_tensor(x) else backend.beside(x, like)
    return x if backend.dtype_name(x) in dtypes else ops.cast(x, dtypes[0])


def _with_batch(x, letters, batch):
    """x with a batch axis of that size, before all it has, or in the place of one of size 1."""
    if letters[:2] == "BT":
        return x
    x = x[None] if len(x.shape) < len(letters) else x
    return x if x.shape[0] == batch else backend.there(ops.broadcast_to(x, (batch, *x.shape[1:])), x)


def _alike(recurrence, xs):
    """xs in the dtypes that a kernel of a GPU is compiled for: one for what there is of each token, which the decay may
    replace by float32, and float32 for the rest.
    """
    each = [letters[:2] == "BT" for letters in recurrence.inputs]
    dtypes = [backend.dtype_name(x) for x in xs]
    others = {dtypes[i] for i, of_tokens in enumerate(each) if of_tokens and i != recurrence.decay}
    common = others.pop() if len(others) == 1 else "float32"
    wanted = [common if of_tokens else "float32" for of_tokens in each]
    if recurrence.decay is not None and dtypes[recurrence.decay] == "float32":
        wanted[recurrence.decay] = "float32"
    return [_of(x, (to,)) for x, to in zip(xs, wanted, strict=True)]


def _flags(present, reset, like):
    """(B, T) uint8 of bits of a token of the input `like`, or empty."""
    if present is None and reset is None:
        return backend.nothing("uint8", like)
    present, reset = (None if x is None else backend.beside(x, like) for x in (present, reset))
    absent = None if present is None else ops.logical_not(ops.cast(present, "bool"))
    flags = [] if absent is None else [ops.cast(absent, "uint8") * ABSENT]
    flags += [] if reset is None else [ops.cast(real_resets(reset, present), "uint8") * RESET]
    flags = flags[0] if len(flags) == 1 else flags[0] + flags[1]
    return backend.there(flags if flags.shape[0] == like.shape[0] else ops.broadcast_to(flags, like.shape[:2]), like)
