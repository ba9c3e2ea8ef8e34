"""Run by `test_placement.py` in a process in which JAX has four devices: networks on several of them, and streamed.

A processor is made four, so all numbers have to be those of one device, but for sums in another order.
"""

import sys

import jax
import numpy as np

from bert4keras_rwkv import RWKV
from bert4keras_rwkv.models.placement import Placement

STRATEGY = "cpu:0 fp32 *1 -> cpu:1 fp32 *1+ -> cpu:2 fp32 *1"
IDS = np.array([[3, 1, 4, 1, 5, 9, 2]], "int32")
PRESENT = np.array([[False, True, True, False, True, True, True]])
GREEDY = {"sampling": "greedy", "stop_token_ids": None, "max_new_tokens": 9, "return_state": True}


def close(got, want, bar=1e-5):
    """1e-5 of the largest: what is compiled as one program sums in another order."""
    got, want = np.asarray(got), np.asarray(want)
    np.testing.assert_allclose(got, want, atol=bar * max(1, np.abs(want).max()))


def same(rwkv, one):
    """All ways to read and to write give what they give on one device."""
    logits, state = rwkv.forward(IDS, present=PRESENT)
    wanted, after = one.forward(IDS, present=PRESENT)
    for got, want in ((logits, wanted), (state.wkv, after.wkv), (state.shift, after.shift)):
        close(got, want, 2e-6)
    assert {*logits.devices(), *state.wkv.devices(), *state.shift.devices()} == {jax.devices()[0]}
    now = None
    for i in range(3):
        step, now = rwkv.prefill(IDS[:, i : i + 1], now, PRESENT[:, i : i + 1])
    close(step, wanted[:, 2], 1e-4)
    chances = np.asarray(jax.nn.log_softmax(logits))[0, np.arange(7), IDS[0]]
    close(rwkv.score(IDS, IDS, present=PRESENT)[0][0], np.where(PRESENT[0], chances, 0))
    ids, state = rwkv.generate([1, 2, 3], **GREEDY)
    wanted, after = one.generate([1, 2, 3], **GREEDY)
    assert list(ids) == list(wanted)
    close(state.wkv, after.wkv)
    stream = rwkv.stream([1, 2, 3], **GREEDY)
    assert [next(stream) for _ in range(4)] == list(ids)[3:7]
    assert list(rwkv.generate([list(ids)[6]], state=stream.state, **GREEDY)[0])[1:6] == list(ids)[7:]


def bytes_on(device):
    return sum(x.nbytes for x in jax.live_arrays() if x.devices() == {device})


def peak(rwkv, device):
    """Bytes that lie on a device when a block is called, at most."""
    seen, put = [], Placement.run

    def run(self, calls, *given):
        def watched(call):
            def called(values, *rest):
                seen.append(bytes_on(device))
                return call(values, *rest)

            return called

        return put(self, list(map(watched, calls)), *given)

    Placement.run = run
    try:
        rwkv.forward(IDS)
    finally:
        Placement.run = put
    return max(seen)


def lies_where_it_is_planned(rwkv, plan):
    for layer, place in zip([*rwkv.backbone.blocks, rwkv.backbone.head], plan.places, strict=True):
        kept = "cpu:0" if place.streamed else place.device
        assert {device.id for v in layer.variables for device in v.value.devices()} == {int(kept[4:])}


def takes_as_little_as_is_planned(folder, device):
    """The head, and two blocks at a time, of four; a quarter of one more for what is computed."""
    rwkv = RWKV.from_preset(folder, strategy=f"cpu:{device.id} fp32 *0+")
    block = max(sum(v.value.nbytes for v in block.variables) for block in rwkv.backbone.blocks)
    head = sum(v.value.nbytes for layer in (rwkv.backbone.head, rwkv.backbone.ln_out) for v in layer.variables)
    assert bytes_on(device) == head
    assert head + block < peak(rwkv, device) < head + 2.25 * block


def main(folder):
    rwkv = RWKV.from_preset(folder, strategy=STRATEGY)
    lies_where_it_is_planned(rwkv, RWKV.plan(folder, STRATEGY))
    same(rwkv, RWKV.from_preset(folder))
    takes_as_little_as_is_planned(folder, jax.devices()[3])


if __name__ == "__main__":
    main(sys.argv[1])
    print("all is the same")
