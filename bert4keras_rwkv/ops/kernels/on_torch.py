"""Native kernels as operators of PyTorch: `torch.ops.bert4keras_rwkv.wkv6` and others, differentiable."""

import threading

from bert4keras_rwkv.ops.backend import dtype_name, once_while_tracing
from bert4keras_rwkv.ops.kernels import cuda
from bert4keras_rwkv.ops.kernels.library import DTYPES, ONLY_ONE_GRADIENT, OUTPUTS, library, rounded_shape

NAMESPACE = "bert4keras_rwkv"
TAKEN = ("float32", "bfloat16")  # of inputs; others are cast to the first, as which all else but flags comes
NO_TANGENT = (
    "Native kernels have no derivatives in forward mode, and this program asks for one. Build the model with "
    "kernel='ops', or set OPS_KERNEL=1."
)


def differentiable(recurrence):
    """(*xs, state, start, flags) -> (y, state) of a `native.Recurrence`, whose gradient is a kernel too."""
    import torch

    operator = _defined(recurrence)

    def run(*inputs):
        if any(x.device != inputs[0].device for x in inputs):
            devices = sorted({str(x.device) for x in inputs})
            raise ValueError(f"The tensors of a recurrence lie on one device. Received: {', '.join(devices)}.")
        if not torch.compiler.is_compiling() and any(_has_tangent(x) for x in inputs):
            raise NotImplementedError(NO_TANGENT)
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        return operator(*inputs, keep)[:2]

    return run


def _defined(recurrence):
    """Define the two operators of a recurrence, once in a process. Returns the first."""
    import torch

    name, backward_name = recurrence.name, f"{recurrence.name}_gradient"
    inputs = [f"x{i}" for i in range(len(recurrence.inputs))] + ["state", "start"]
    kept = [f"kept{i}" for i in range(len(recurrence.kept))]

    def signature(name, tensors, results, more=""):
        tensors, results = (", ".join(f"Tensor {x}" if x else "Tensor" for x in xs) for xs in (tensors, results))
        return f"{name}({tensors}{more}) -> ({results})"

    def made(*tensors):
        *tensors, keep = tensors
        shapes = recurrence.results(recurrence.sizes(tensors[0]), keep)
        return tuple(tensors[0].new_empty(shape, dtype=torch.float32) for shape in shapes)

    def slopes_made(*tensors):
        return tuple(x.new_empty(x.shape) for x in tensors[: len(inputs)])

    def check(tensors):
        """A kernel reads what it is given as what it expects."""
        for i, x in enumerate(tensors):
            flags = i == len(inputs)
            wanted = TAKEN if i < len(recurrence.inputs) else ("uint8",) if flags else TAKEN[:1]
            if dtype_name(x) not in wanted:
                raise ValueError(f"Tensor {i} of {name} is of {' or '.join(wanted)}. Received: {dtype_name(x)}.")

    def forward(*tensors):
        check(tensors[:-1])
        results = made(*tensors)
        _run(name, tensors[:-1], results)
        return results

    def gradient(*tensors):
        check(tensors)
        results = slopes_made(*tensors)
        _run(backward_name, tensors, results)
        return results

    def remember(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:-1], *output)

    def backward(ctx, dy, dlast, *_):
        tensors = ctx.saved_tensors
        count = len(inputs) + 1
        y, last = tensors[count : count + 2]
        slopes = [torch.zeros_like(x) if slope is None else slope for x, slope in ((y, dy), (last, dlast))]
        found = getattr(torch.ops.bert4keras_rwkv, backward_name)(*tensors[:count], *tensors[count + 2 :], *slopes)
        wanted = zip(found, ctx.needs_input_grad[: len(inputs)], strict=True)
        return (*(slope if needed else None for slope, needed in wanted), None, None)

    def no_second(ctx, *_):
        raise NotImplementedError(ONLY_ONE_GRADIENT)

    definitions = torch.library.Library(NAMESPACE, "FRAGMENT")
    LIBRARIES.append(definitions)
    definitions.define(signature(name, [*inputs, "flags"], ["", "", *kept], ", bool keep"))
    definitions.define(signature(backward_name, [*inputs, "flags", *kept, "dy", "dlast"], ["" for _ in inputs]))
    for operator, run, shapes in ((name, forward, made), (backward_name, gradient, slopes_made)):
        for device in RUN_ON:
            definitions.impl(operator, run, device.upper())
        _implementations[operator] = run
        torch.library.register_fake(f"{NAMESPACE}::{operator}", shapes, lib=definitions)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=remember, lib=definitions)
    torch.library.register_autograd(f"{NAMESPACE}::{backward_name}", no_second, lib=definitions)
    return getattr(torch.ops.bert4keras_rwkv, name).default


def product(name):
    """(x (R, I), the tensors of a matrix) -> (R, O) float32. It has no gradient."""
    _define_product(name)
    return _products[name]


@once_while_tracing
def _define_product(name):
    """Once in a process, and outside of what is traced."""
    if name not in _products:
        with _defining:
            if name not in _products:
                _products[name] = _defined_product(name)


_defining = threading.Lock()
_products = {}


def _defined_product(name):
    import torch

    def made(x, packed):
        return x.new_empty((x.shape[0], packed[0].shape[OUTPUTS[name]]), dtype=torch.float32)

    def run(x, packed):
        y = made(x, packed)
        if (shape := rounded_shape(name, x, packed[0])) is not None:
            rows = x.new_empty(shape, dtype=torch.uint8)
            _run("round_rows", [x], [rows])
            x = rows
        _run(name, [x, *packed], [y])
        return y

    definitions = torch.library.Library(NAMESPACE, "FRAGMENT")
    LIBRARIES.append(definitions)
    definitions.define(f"{name}(Tensor x, Tensor[] packed) -> Tensor")
    for device in RUN_ON:
        definitions.impl(name, run, device.upper())
    _implementations[name] = run
    torch.library.register_fake(f"{NAMESPACE}::{name}", made, lib=definitions)
    return getattr(torch.ops.bert4keras_rwkv, name).default


def implementation(operator):
    """What an operator of PyTorch calls without a gradient, if that is one of ours; else the operator itself."""
    namespace, _, name = operator.name().partition("::")
    return _implementations[name] if namespace == NAMESPACE else operator


_implementations = {}


def _has_tangent(x):
    from torch.autograd import forward_ad

    return forward_ad.unpack_dual(x).tangent is not None


LIBRARIES = []  # operators last as long as these


def _run(name, tensors, results):
    given = [x if x.is_contiguous() else x.contiguous() for x in tensors]
    described = [[(x.data_ptr(), _code(x.dtype), x.shape) for x in group] for group in (given, results)]
    RUN_ON[tensors[0].device.type](name, described, tensors[0].device)


def _code(dtype):
    """The number of a dtype of PyTorch, looked up once: its name is slow."""
    if dtype not in _codes:
        _codes[dtype] = DTYPES[str(dtype).removeprefix("torch.")]
    return _codes[dtype]


_codes = {}


def _on_cpu(name, described, _):
    import torch

    library().run(name, *described, torch.get_num_threads())


def _on_gpu(name, described, device):
    """In the order of the work that PyTorch has given the device."""
    import torch

    with torch.cuda.device(device):
        cuda.run(name, *described, torch.cuda.current_stream().cuda_stream)


RUN_ON = {"cpu": _on_cpu, "cuda": _on_gpu}
