"""Native kernels as JAX functions: differentiable, under `vmap`, and with batch and heads on several devices."""

from functools import cache

import numpy as np

from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.kernels import cuda
from bert4keras_rwkv.ops.kernels.library import (
    DTYPES,
    ONLY_ONE_GRADIENT,
    OUTPUTS,
    key_of_sources,
    library,
    rounded_shape,
)

HANDLERS = {"cpu": "rwkv_xla", "CUDA": "rwkv_cuda_xla"}  # of src/, for the platforms of XLA


def differentiable(recurrence):
    """(*xs, state, start, flags) -> (y, state) of a `native.Recurrence`, whose gradient is a kernel too."""
    import jax

    kept, gradient = (_without_gradient(kernel(recurrence, kind)) for kind in ("kept", "gradient"))

    @jax.custom_vjp
    def run(*inputs):
        return kernel(recurrence, "forward")(*inputs)[:2]

    def forward(*inputs):
        y, last, *more = kept(*inputs)
        return (y, last), (inputs, more)

    def backward(left, slopes):
        inputs, more = left
        return (*gradient(*inputs, *more, *slopes), None)  # flags have none

    run.defvjp(forward, backward)
    return run


def _without_gradient(function):
    """`function`, which says so where one is asked for."""
    import jax

    alone = jax.custom_jvp(lambda *tensors: function(*tensors))

    @alone.defjvp
    def _(tensors, slopes):
        raise NotImplementedError(ONLY_ONE_GRADIENT)

    return alone


@cache
def kernel(recurrence, kind):
    """One kernel of a recurrence. kind: 'forward', 'kept' (with what the gradient needs) or 'gradient'."""
    from jax.custom_batching import custom_vmap
    from jax.experimental.custom_partitioning import custom_partitioning

    call = custom_partitioning(_call(recurrence, kind))

    def partition(mesh, arguments, results):
        """Whatever was propagated: all as the first input is split by batch and by heads or channels, and not else."""
        axes = dict(zip(recurrence.inputs[0], _axes(arguments[0]), strict=True))
        letters = _letters(recurrence, kind)
        made, given = (
            tuple(
                _split(mesh, [axes.get(x) if x in "BHD" and 0 not in info.shape else None for x in word])
                for word, info in zip(words, infos, strict=True)
            )
            for words, infos in zip(letters[::-1], (results, arguments), strict=True)
        )
        return mesh, _call(recurrence, kind), made, given

    def rule(mesh, arguments, results):
        return _rule(recurrence, kind, [x.shape for x in arguments], [x.shape for x in results])

    call.def_partition(partition, sharding_rule=rule)
    batched = custom_vmap(lambda *tensors: call(*tensors))

    @batched.def_vmap
    def _(size, mapped, *tensors):
        """More of the batch: every tensor has its batch axis first."""
        import jax.numpy as jnp

        def joined(x, is_mapped):
            x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return x[:1].reshape(-1) if x.size == 0 and x.ndim == 2 else x.reshape(-1, *x.shape[2:])

        batch = tensors[0].shape[1 if mapped[0] else 0]

        def parted(x):
            return jnp.zeros((size, 0), x.dtype) if x.shape == (0,) else x.reshape(size, batch, *x.shape[1:])

        results = batched(*map(joined, tensors, mapped))
        return tuple(map(parted, results)), (True,) * len(results)

    return batched


def _call(recurrence, kind):
    """The kernel on one device."""
    import jax

    register()
    name = recurrence.name + ("_gradient" if kind == "gradient" else "")

    def call(*tensors):
        sizes = recurrence.sizes(tensors[0])
        if kind == "gradient":
            made = [(x.shape, x.dtype) for x in tensors[: len(recurrence.inputs) + 2]]
        else:
            made = [(shape, np.float32) for shape in recurrence.results(sizes, kind == "kept")]
        results = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in made)
        if backend.device_kind() == "cuda":
            _prepare(name, tensors, results)
        return tuple(jax.ffi.ffi_call(target(), results)(*tensors, kernel=name))

    return call


@cache
def product(name, slope):
    """(x (R, I), *tensors of a matrix) -> (R, O) float32, see `native.product`."""
    import jax
    from jax.custom_batching import custom_vmap
    from jax.experimental.custom_partitioning import custom_partitioning

    outputs = OUTPUTS[name]

    def call(x, *tensors):
        register()
        if (shape := rounded_shape(name, x, tensors[0])) is not None:
            x = start("round_rows", jax.ShapeDtypeStruct(shape, np.uint8), x)
        return start(name, jax.ShapeDtypeStruct((x.shape[0], tensors[0].shape[outputs]), np.float32), x, *tensors)

    def start(name, made, *tensors):
        if backend.device_kind() == "cuda":
            _prepare(name, tensors, [made])
        return jax.ffi.ffi_call(target(), made)(*tensors, kernel=name)

    def partition(mesh, arguments, result):
        """By rows, and a matrix that is split by its outputs stays so."""
        x, *tensors = arguments
        rows, of_outputs = _axes(x)[0], _axes(tensors[0])[outputs]
        axes = [[None] * len(info.shape) for info in tensors]
        for info, each in zip(tensors, axes, strict=True):
            if 0 not in info.shape:
                each[outputs] = of_outputs
        return mesh, call, _split(mesh, [rows, of_outputs]), tuple(_split(mesh, each) for each in ([rows, None], *axes))

    def rule(mesh, arguments, result):
        words, whole = ["r i"], ["i"]
        for i, info in enumerate(arguments[1:]):
            factors = [f"x{i}y{axis}" for axis in range(len(info.shape))]
            whole += factors
            if 0 not in info.shape:
                whole.remove(factors[outputs])
                factors[outputs] = "o"
            words.append(" ".join(factors))
        return f"{', '.join(words)} -> r o", {"need_replication_factors": tuple(whole)}

    parted = custom_partitioning(call)
    parted.def_partition(partition, sharding_rule=rule)
    batched = custom_vmap(lambda *tensors: parted(*tensors))

    @batched.def_vmap
    def _(size, mapped, x, *tensors):
        """More rows, or one after another where it is the matrix that differs."""
        if not any(mapped[1:]):
            y = batched(x.reshape(-1, x.shape[-1]), *tensors)
            return y.reshape(size, x.shape[1], y.shape[-1]), True
        each = [i for i, is_mapped in enumerate(mapped) if is_mapped]

        def one(several):
            given = [x, *tensors]
            for i, value in zip(each, several, strict=True):
                given[i] = value
            return batched(*given)

        return jax.lax.map(one, [[x, *tensors][i] for i in each]), True

    @jax.custom_vjp
    def run(*tensors):
        return batched(*tensors)

    def forward(x, *tensors):
        return batched(x, *tensors), (tensors, x)

    def backward(left, dy):
        tensors, x = left
        slopes = slope(dy, x, tensors)
        given = zip(slopes, (x, *tensors), strict=True)
        return tuple(None if found is None else found.astype(of.dtype) for found, of in given)

    run.defvjp(forward, backward)
    return run


def target():
    """The name under which XLA knows the kernels: of these sources, since programs that call them may be kept."""
    return f"bert4keras_rwkv_{key_of_sources()}"


@cache
def register():
    """Make the kernels known to XLA in this process, which a program that was exported with them needs too."""
    import jax

    for platform, handler in HANDLERS.items():
        capsule = jax.ffi.pycapsule(getattr(library().handle, handler))
        jax.ffi.register_ffi_target(target(), capsule, platform=platform)
    if backend.device_kind() == "cuda":
        cuda.compiler()


def export_checks():
    """What `jax.export.export` takes as `disabled_checks` to write a program that calls native kernels.

    XLA promises nothing of custom calls that it does not know; ours is named after the sources, so another version of
    them is not found rather than called.
    """
    import jax

    return [jax.export.DisabledSafetyCheck.custom_call(target())]


def _prepare(name, tensors, results):
    """Compile for a GPU what the program that is being traced will start, unless its shapes are not known yet."""
    described = [[(0, DTYPES[str(x.dtype)], x.shape) for x in group] for group in (tensors, results)]
    if all(isinstance(size, int) for group in described for _, _, shape in group for size in shape):
        cuda.prepare(name, *described)


def _letters(recurrence, kind):
    """The letters of the dimensions of each argument and of each result of a kernel."""
    given = (*recurrence.inputs, recurrence.state, recurrence.state, "BT")
    made = (recurrence.y, recurrence.state, *recurrence.kept)
    return ((*given, *recurrence.kept, *made[:2]), given[:-1]) if kind == "gradient" else (given, made)


def _axes(info):
    """By what each dimension of an argument is split: names of the mesh, or None. One that has none is taken whole."""
    spec = tuple(getattr(info.sharding, "spec", ()))
    return [*spec, *(None for _ in range(len(info.shape) - len(spec)))]


def _split(mesh, axes):
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec(*axes))


def _rule(recurrence, kind, arguments, results):
    """How a kernel may be split, for Shardy: by batch and by heads or channels, never within a sequence or a state.

    arguments, results: shapes. An empty tensor has a factor of its own.
    """
    given, made = _letters(recurrence, kind)
    words, whole = [], {}  # which factors stay whole, in the order in which they appear
    for letters, shape in zip((*given, *made), (*arguments, *results), strict=True):
        factors = [f"none{len(words)}"]
        if 0 not in shape:
            factors = [f"{x.lower()}{letters[:i].count(x) or ''}".replace("3", "three") for i, x in enumerate(letters)]
        whole |= dict.fromkeys(x for x in factors if x not in ("b", "h", "d"))
        words.append(" ".join(factors))
    rule = ", ".join(words[: len(given)]) + " -> " + ", ".join(words[len(given) :])
    return rule, {"need_replication_factors": tuple(whole)}
