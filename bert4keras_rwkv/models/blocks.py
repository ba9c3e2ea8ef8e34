"""A network that is run block by block, each block a call of one small program that all equal blocks share.

A program of the whole network is as long as the network is deep, and so is the time to trace, to compile and to load
it. Here it is one block long. Each call costs the host a tenth of a millisecond, while a block computes: where a block
takes less than that, in a small model or on an accelerator, one program is better. It is the only way where blocks lie
on several devices, or are streamed: a program computes on one, with what lies there.
"""

import numpy as np

from bert4keras_rwkv.generation import loop
from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models.backbone import as_computed, facts
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.compile import compiled, compiled_for_any, values

NARROWEST = 512  # hidden size from which a block takes longer than calling it


def worthwhile(network):
    """Whether to run a network block by block."""
    return must_be(network) or (
        backend.name() == "jax" and not backend.has_accelerator() and network.config.hidden_size >= NARROWEST
    )


def must_be(network):
    """Whether a network can be compiled block by block only."""
    return backend.name() == "jax" and network.placement is not None


class Blocks:
    """Runs a `Backbone` from outside compiled functions, on JAX."""

    def __init__(self, network):
        self._network, self._placement = network, network.placement
        self._description = network.description(__name__)
        around = [*network.embed.variables, *network.ln0.variables]
        self._enter = compiled(self._embedded, around, lambda: self._description.of("enter"))
        self.unpack = compiled(network.unpack, (), lambda: self._description.of("unpack"))
        self._pack = compiled(network.pack, (), lambda: self._description.of("pack"))
        shared = {}
        places = [None] * len(network.blocks) if network.placement is None else network.placement.devices
        self._calls = [self._program(*pair, shared) for pair in zip(network.blocks, places, strict=False)]
        self._variables = [block.variables for block in network.blocks]  # when there are others, so are there `Blocks`

    @property
    def behind(self):
        """The variables of what is behind the blocks."""
        return [*self._network.ln_out.variables, *self._network.head.variables]

    def read(self, ids, state, present):
        """`Backbone.read`. ids, present: (B, T), or (B,) for one token."""
        if self._placement is not None:
            ids, present = self._placement.brought((ids, present), self._network.embed)
            x, side = self._enter(ids, present)
            x, state = self._placement.run(self._calls, x, state, side)
            return self._placement.brought(x, self._network.head), state
        x, side = self._enter(ids, present)
        new = []
        for variables, call, here in zip(self._variables, self._calls, state, strict=True):
            x, here, more = call(values(variables), x, here, side)
            side = side | more
            new.append(here)
        return x, new

    def pack(self, state):
        """`Backbone.pack`."""
        return self._pack(state if self._placement is None else self._placement.brought_home(state))

    def prefill(self, ids, length, state, chunks=loop.CHUNKS):
        """`loop.prefill`. ids (B, L), length (B,): NumPy. Returns the state."""
        at, longest = 0, int(length.max())
        for size in chunks:
            while at < longest and (longest - at >= size or size == chunks[-1]):
                piece = np.zeros((len(ids), size), ids.dtype)
                some = ids[:, at : at + size]
                piece[:, : some.shape[1]] = some
                _, state = self.read(piece, state, at + np.arange(size) < length[:, None])
                at += size
        return state

    def _embedded(self, ids, present):
        if len(ids.shape) == 1:
            ids, present = ops.expand_dims(ids, 1), ops.expand_dims(present, 1)
        return self._network.enter(ids, present)

    def _program(self, block, device, shared):
        """The program of a block: that of an equal one on the same device in `shared`, if there is one."""
        kind = tuple(facts(layer) for layer in block._flatten_layers())
        shapes = tuple((tuple(variable.shape), variable.dtype) for variable in block.variables)
        key = kind, shapes, device
        if key not in shared:

            def run(x, state, side):
                x, cast = as_computed(block, x, side)
                x, state, after = block(x, state, cast)
                return x, state, {name: value for name, value in after.items() if name not in side}

            described = self._description.of("block", kind)
            shared[key] = compiled_for_any(run, block.variables, lambda: described)
        return shared[key]
