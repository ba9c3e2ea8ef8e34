"""Native kernels as operators of PyTorch: what PyTorch asks of an operator, compiled, and with odd tensors."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.ops.kernels.check import inputs
from bert4keras_rwkv.ops.kernels.native import RECURRENCES, native
from bert4keras_rwkv.ops.wkv6 import wkv6

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
NAMES = sorted(RECURRENCES)


def tensors(rng, name, shape=(2, 19, 2, 8), requires_grad=True):
    """All that an operator of a recurrence takes, with its batch axes."""
    xs, state, _ = inputs(rng, name, shape)
    xs = [
        np.broadcast_to(x, (shape[0], *x.shape)) if len(x.shape) < len(letters) else x
        for x, letters in zip(xs, RECURRENCES[name].inputs, strict=True)
    ]
    made = [ops.convert_to_tensor(np.array(x)).requires_grad_(requires_grad) for x in (*xs, state, state)]
    return (*made, ops.convert_to_tensor((rng.random(shape[:2]) > 0.7).astype("uint8")))


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_accepts_the_operators(name, rng):
    import torch

    given = tensors(rng, name)
    native(name, given[:-3], given[-3])  # defines them
    torch.library.opcheck(getattr(torch.ops.bert4keras_rwkv, name), (*given, True))
    kept = getattr(torch.ops.bert4keras_rwkv, name)(*(x.detach() for x in given), True)
    slopes = [torch.ones_like(x) for x in kept[:2]]
    backward = getattr(torch.ops.bert4keras_rwkv, f"{name}_gradient")
    torch.library.opcheck(backward, (*(x.detach() for x in given), *kept[2:], *slopes))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_without_a_break(name, rng):
    import torch

    given = tensors(rng, name)[:-2]

    def total(*given):
        return sum((x * x).sum() for x in native(name, given[:-1], given[-1]))

    def slopes(function):
        for x in given:
            x.grad = None
        function(*given).backward()
        return [x.grad.clone() for x in given]

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    for got, want in zip(slopes(compiled), slopes(total), strict=True):
        torch.testing.assert_close(got, want)


FIRST = """
import sys
import numpy as np, torch
from bert4keras_rwkv.ops.kernels import native
from bert4keras_rwkv.ops.kernels.check import inputs
from bert4keras_rwkv.ops.wkv4 import wkv4
from bert4keras_rwkv.ops.wkv6 import wkv6
from bert4keras_rwkv.ops.wkv7 import wkv7

rng = np.random.default_rng(0)
for function, kernel in ((wkv4, "native"), (wkv6, "auto"), (wkv7, "native"), (wkv6, "auto")):
    xs, *states = inputs(rng, function.__name__, (2, 7, 2, 8))
    *xs, state, start = (torch.tensor(np.array(x)) for x in (*xs, *states))
    mask = torch.tensor(rng.random((2, 7)) > 0.5)
    run = lambda *xs: function(*xs, state, mask, mask, start, kernel=kernel)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = compiled(*xs)
    for got, want in zip(found, run(*xs), strict=True):
        torch.testing.assert_close(got, want)
print(sorted(native._differentiable))
"""


def test_compiled_as_the_first_call_of_a_process():
    """What is asked, loaded and defined once is so outside of the program that is traced."""
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "OPS_KERNEL": "0"}
    done = subprocess.run([sys.executable, "-c", FIRST], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "['wkv4', 'wkv6', 'wkv7']\n", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_gaps_in_memory_and_offsets(name, rng):
    """Tensors that are views of others, turned and not aligned, give what copies of them give."""
    import torch

    given = [x.detach() for x in tensors(rng, name)[:-2]]
    odd = []
    for x in given:
        last_first = torch.empty((*x.shape[1:], x.shape[0] + 1), device=x.device).movedim(-1, 0)[1:]
        odd.append(last_first.copy_(x))
    assert not any(x.is_contiguous() for x in odd)
    for got, want in zip(native(name, odd[:-1], odd[-1]), native(name, given[:-1], given[-1]), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_all_on_another_device_than_the_default(rng):
    """Nothing is made beside them: what is not given, and arrays, go where the tensors are."""
    given = [x.detach().to("meta") for x in tensors(rng, "wkv6")[:-2]]
    mask = rng.random((2, 19)) > 0.5
    for options in ({}, {"present": mask, "reset": mask, "start": np.zeros((2, 8, 8), "float32")}):
        for kernel in ("auto", "native"):
            xs = [*given[:4], given[4][0]]
            found = wkv6(*xs, given[5], **options, kernel=kernel)
            assert [x.shape for x in found] == [given[0].shape, given[5].shape]
            assert {x.device.type for x in found} == {"meta"}


def test_inputs_on_two_devices(rng):
    *xs, state = (x.detach() for x in tensors(rng, "wkv6")[:-2])
    with pytest.raises(ValueError, match=r"one device\. Received: (cpu|cuda:0), meta"):
        native("wkv6", xs, state.to("meta"))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_has_none(name, rng):
    """One sentence, and no wrong number; with create_graph a gradient is as without."""
    import torch

    *given, state, _, _ = tensors(rng, name)

    def slopes(**options):
        return torch.autograd.grad(sum((x * x).sum() for x in native(name, given, state)), given, **options)

    first = slopes(create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, slopes(), strict=True))
    with pytest.raises(NotImplementedError, match="Build the model with kernel='ops'"):
        torch.autograd.grad(sum((x * x).sum() for x in first), given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch, on its way to forward mode
def test_no_derivative_in_forward_mode(rng):
    import torch

    *given, state, _, _ = tensors(rng, "wkv6", requires_grad=False)
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(lambda x: native("wkv6", [x, *given[1:]], state)[0], (given[0],), (given[0],))


def test_several_threads_begin_at_once(rng, monkeypatch):
    """Operators are defined once, whoever comes first."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from bert4keras_rwkv.ops.kernels import native as module
    from bert4keras_rwkv.ops.kernels import on_torch

    monkeypatch.setattr(module, "_differentiable", {})
    made, together = [], Barrier(8)
    monkeypatch.setattr(on_torch, "differentiable", lambda recurrence: made.append(recurrence) or len(made))

    def begin(_):
        together.wait()
        return module.differentiable("wkv6")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(begin, range(8))) == [1] * 8
    assert len(made) == 1


def test_other_dtypes_and_no_token_are_refused(rng):
    """By the operators themselves, which are public."""
    import torch

    *xs, state, start, flags = (x.detach() for x in tensors(rng, "wkv6"))
    native("wkv6", xs, state)
    operator = torch.ops.bert4keras_rwkv.wkv6
    for given in ((*xs, state.bfloat16(), start, flags), (*xs, state, start, flags.float()), (*xs[:-1], flags)):
        given = (*given, state, start, flags)[: len(xs) + 3]
        with pytest.raises(ValueError, match="of wkv6 is of"):
            operator(*given, False)
    with pytest.raises(ValueError, match="at least one token"):
        operator(*(x[:, :0] for x in xs[:4]), xs[4], state, start[:0], flags[:0], False)
