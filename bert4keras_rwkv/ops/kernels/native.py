"""The recurrences on native kernels: what a kernel takes and gives, with gradients, on JAX and PyTorch.

A kernel takes the inputs of a recurrence, each with a batch axis, its initial state, the state that documents begin
with and the flags of tokens; what is not given is empty. It gives y and the last state and, where a gradient is wanted,
what the kernel of the gradient takes beside all this. src/host.cc compares the shapes.
"""

from dataclasses import dataclass

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.chunks import real_resets
from bert4keras_rwkv.ops.kernels import on_jax, on_torch
from bert4keras_rwkv.ops.kernels.library import NoLibraryError, library

CHUNK = 32  # as in src/: tokens between two states that are kept
ABSENT, RESET = 1, 2
TAKEN = ("float32", "bfloat16")  # other dtypes are cast to the first
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


def why_not(dtype=None, shape=()):
    """Why no native kernel runs here for inputs of a dtype (None: any) and shape, one sentence; None if one does."""
    if backend.name() not in ON:
        return f"Native kernels run on JAX and PyTorch, and Keras runs on {backend.name()}."
    if _accelerated():
        return "The native kernels are for CPUs, and arrays live on an accelerator here."
    if dtype is not None and backend.accumulation_dtype(dtype) == "float64":
        return "Native kernels compute in float32, and the inputs are float64."
    if not all(isinstance(size, int) for size in shape):
        return "This program is made for sizes that are not known yet, for another process: an export."
    try:
        library()
    except NoLibraryError as error:
        return str(error)
    return None


def _accelerated():
    """`backend.has_accelerator`, asked once."""
    if "here" not in _accelerator:
        _accelerator["here"] = backend.has_accelerator()
    return _accelerator["here"]


_accelerator = {}


def native(name, xs, state, present=None, reset=None, start=None):
    """A recurrence of `RECURRENCES` on its kernel: y and the last state, float32.

    xs: its inputs, in its order, those without a batch axis (RWKV-6's u, RWKV-4's w and u) without it. state, present,
    reset, start: as in `ops.wkv6.wkv6`.
    """
    recurrence = RECURRENCES[name]
    batch = ops.shape(xs[0])[0]
    xs = [_with_batch(_of(x, TAKEN), letters, batch) for x, letters in zip(xs, recurrence.inputs, strict=True)]
    state, begin = _of(state), ops.zeros((0,), "float32")
    if reset is not None and start is not None:
        begin = _with_batch(_of(start), recurrence.state, batch)
    return differentiable(name)(*xs, state, begin, _flags(present, reset))


def differentiable(name):
    """The function of a recurrence's tensors, (*xs, state, start, flags) -> (y, state), with gradients."""
    if name not in _differentiable:
        _differentiable[name] = {"jax": on_jax, "torch": on_torch}[backend.name()].differentiable(RECURRENCES[name])
    return _differentiable[name]


_differentiable = {}  # plain dicts here and in library.py: `torch.compile` does not see through `functools.cache`


def _of(x, dtypes=TAKEN[:1]):
    """x as a tensor of one of these dtypes: its own, or else the first. In a decoding loop this is half of the cost."""
    x = x if ops.is_tensor(x) else ops.convert_to_tensor(x)
    return x if str(x.dtype).removeprefix("torch.") in dtypes else ops.cast(x, dtypes[0])


def _with_batch(x, letters, batch):
    """x with a batch axis of that size, before all it has, or in the place of one of size 1."""
    if letters[:2] == "BT":
        return x
    x = ops.expand_dims(x, 0) if len(x.shape) < len(letters) else x
    return ops.broadcast_to(x, (batch, *x.shape[1:]))


def _flags(present, reset):
    """(B, T) uint8 of bits of a token, or empty."""
    if present is None and reset is None:
        return ops.zeros((0,), "uint8")
    absent = None if present is None else ops.logical_not(ops.cast(present, "bool"))
    flags = [] if absent is None else [ops.cast(absent, "uint8") * ABSENT]
    flags += [] if reset is None else [ops.cast(real_resets(reset, present), "uint8") * RESET]
    return flags[0] if len(flags) == 1 else flags[0] + flags[1]
