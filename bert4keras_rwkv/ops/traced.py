"""Functions that are called again and again, on PyTorch: their operators are recorded once, and run without Keras.

One token costs a small model less than Keras' layer calls around it. What is recorded is what PyTorch ran, operator by
operator, so the results are the same bit for bit.
"""

import threading
from collections import OrderedDict

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.ops.kernels.on_torch import implementation

CALLS = 8  # of one kind; the last of them is recorded, which takes about as long as two calls
MOST = 16  # kinds of calls that a function has programs for

# Operators by what they do: give a tensor's numbers, the tensor itself, it in another shape.
READING = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
SAME = {"aten::detach", "aten::alias", "aten::lift_fresh", "aten::expand"}
RESHAPING = {"aten::view", "aten::_unsafe_view"}
# Those that `torch` has under the same name, for the same arguments: that is called faster.
QUICK = {"add", "mean", "mul", "native_layer_norm", "neg", "pow", "relu", "rsqrt", "select", "sigmoid", "sub", "sum"}
QUICK |= {"tanh", "unsqueeze"}

OF_VALUES = (
    "A function that runs again and again was to be recorded, and its course depends on the numbers in a tensor ({}), "
    "which a recording cannot follow. Call `compiled` without `again` for it."
)
OF_CHANGES = (
    "A function that runs again and again was to be recorded, and it changes a tensor that it was given or that is a "
    "constant in it ({}). Call `compiled` without `again` for it."
)


class Traced:
    """`function(*args)`, recorded when calls of one kind have come `CALLS` times; until then as it is.

    function, variables: as for `ops.compile.compiled`; called with tensors, without gradients. A kind is how arguments
    are nested, their shapes, dtypes and devices. values: a function of variables that gives what they hold.
    """

    def __init__(self, function, variables, values):
        self._function, self._variables, self._values = function, variables, values
        self._calls, self._programs = OrderedDict(), OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *args):
        leaves = []
        kind = _kind(args, leaves)
        program = self._programs.get(kind)
        if program is not None:
            return program(*self._held(), *leaves)
        if not self._is_due(kind):
            return self._function(*args)
        result, program = self._recorded(args, leaves)
        self._keep(self._programs, kind, program)
        return result

    def _held(self):
        return self._values(self._known())

    def _known(self):
        return self._variables() if callable(self._variables) else self._variables

    def _is_due(self, kind):
        """Count a call. Returns whether it is the one to record."""
        with self._lock:
            count = self._calls.pop(kind, 0) + 1
            if count < CALLS:
                self._calls[kind] = count
                _bounded(self._calls)
        return count >= CALLS

    def _keep(self, programs, kind, program):
        with self._lock:
            programs[kind] = program
            _bounded(programs)

    def _recorded(self, args, leaves):
        """Run the function once. Returns its result and the program of its operators."""
        held = self._held()
        recording = recorder()([*held, *leaves])
        with keras.StatelessScope(state_mapping=list(zip(self._known(), held, strict=True))), recording:
            result = self._function(*args)
        return result, recording.program(result)


def _kind(tree, leaves):
    """What is hashed of nested arguments; their tensors are added to `leaves`."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return "dict", *((name, _kind(part, leaves)) for name, part in tree.items())
    if isinstance(tree, tuple | list):
        return type(tree), *(_kind(part, leaves) for part in tree)
    leaves.append(tree)
    return tree.dtype, tree.shape, tree.device


def _bounded(kept):
    while len(kept) > MOST:
        kept.popitem(last=False)


def recorder():
    """The class `Recorder`, made when PyTorch is there."""
    if not _made:
        _made.append(_recorder())
    return _made[0]


_made = []


def _recorder():
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        """Records the operators that run in this context, in this thread. inputs: the tensors that they begin with."""

        def __init__(self, inputs):
            super().__init__()
            self._graph, self._nodes, self._alive = torch.fx.Graph(), {}, []
            self._before = {}  # of what was reshaped, by its address: what it was
            self._constants = torch.nn.Module()
            for i, tensor in enumerate(inputs):
                self._name(tensor, self._graph.placeholder(f"x{i}"))

        def _name(self, tensor, node):
            """From now on a tensor is what a node gives. It must live as long as it is known by its address."""
            self._nodes[id(tensor)] = node
            self._alive.append(tensor)

        def _node(self, tensor):
            if id(tensor) not in self._nodes:
                name = f"constant{len(self._alive)}"
                self._constants.register_buffer(name, tensor)
                self._name(tensor, self._graph.get_attr(name))
            return self._nodes[id(tensor)]

        def _nodes_of(self, tree):
            return torch.fx.node.map_aggregate(tree, lambda x: self._node(x) if isinstance(x, torch.Tensor) else x)

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            name = operator.name()
            if name in READING:
                raise ValueError(OF_VALUES.format(operator))
            if operator._schema.is_mutable:
                raise ValueError(OF_CHANGES.format(operator))
            result = operator(*args, **kwargs)
            first = args[0] if args and isinstance(args[0], torch.Tensor) else None
            if name in RESHAPING and first.is_contiguous():
                first = self._before[id(result)] = self._before.get(id(first), first)
                args = first, list(result.shape)
            if name in SAME | RESHAPING and _alike(result, first):
                self._name(result, self._node(first))
            else:
                self._add(operator, args, kwargs, result)
            return result

        def _add(self, operator, args, kwargs, result):
            args, kwargs = self._nodes_of(args), self._nodes_of(kwargs)
            if operator.name() == "aten::view":
                node = self._graph.call_method("view", args)
            else:
                node = self._graph.call_function(_quickest(operator), args, kwargs)
            if isinstance(result, torch.Tensor):
                self._name(result, node)
                return
            for i, one in enumerate(result):
                self._name(one, self._graph.call_function(_item, (node, i)))

        def program(self, result):
            """A function of the inputs that gives a nested `result`."""
            self._graph.output(self._nodes_of(result))
            for node in reversed(self._graph.nodes):
                if node.op in ("call_function", "call_method", "get_attr") and not node.users:
                    self._graph.erase_node(node)
            return torch.fx.GraphModule(self._constants, self._graph).forward

    return Recorder


def _quickest(operator):
    """What computes the same as an operator, without a gradient, and is called with less ado; else the operator."""
    import torch

    namespace, _, name = operator.name().partition("::")
    name = name.partition(".")[0]
    return getattr(torch, name) if namespace == "aten" and name in QUICK else implementation(operator)


def _item(results, i):
    return results[i]


def _alike(x, y):
    return x.shape == y.shape and x.stride() == y.stride()
