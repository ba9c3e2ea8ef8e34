"""Blocks of a network on several devices, or in host memory, from which they are brought to a device one by one."""

from bert4keras_rwkv.ops import devices
from bert4keras_rwkv.ops.backend import adopt


class Placement:
    """Where the layers of a `Backbone` lie, and how what flows through it gets there.

    network: the backbone, before it is built. places: the `strategy.Place` of each of its blocks and of the head.
    The norm before the head lies with it, embedding and first norm with the first block, or in host memory if that is
    streamed. What comes out, logits and states, lies on `home`, the default device.
    """

    def __init__(self, network, places):
        self._network = network
        self.home = devices.default()
        self.devices = [devices.whole_name(place.device) for place in places]
        self.streamed = [place.streamed for place in places]
        self._stored = [devices.HOST if away else name for name, away in zip(self.devices, self.streamed, strict=True)]

    @property
    def is_needed(self):
        """Whether anything lies elsewhere than it would by itself."""
        return any(self.streamed) or set(self.devices) != {self.home}

    @property
    def waits(self):
        """Whether who runs the blocks waits for them: what is fetched for one is given up behind it."""
        return any(self.streamed)

    def device_of(self, layer):
        """The name of the device on which the variables of a part of the network lie."""
        n = self._network
        if layer is n.embed or layer is n.ln0:
            return self._stored[0]
        if layer is n.head or layer is n.ln_out:
            return self._stored[-1]
        return self._stored[next(i for i, block in enumerate(n.blocks) if block is layer)]

    def storing(self, layer):
        """A context in which what is made lies where the variables of a part of the network do."""
        return devices.on(self.device_of(layer))

    def brought(self, tree, layer):
        """A nested structure of tensors where the variables of a part of the network lie."""
        return devices.put(tree, self.device_of(layer))

    def brought_home(self, tree):
        """A nested structure of tensors on the default device."""
        return devices.put(tree, self.home)

    def owner(self, path):
        """The part of the network in which the variable at an attribute path is, 'blocks/3/time_mix/key/kernel'."""
        first, *rest = path.split("/")
        return self._network.blocks[int(rest[0])] if first == "blocks" else getattr(self._network, first)

    def target(self, path, variable):
        """The variable at an attribute path, as what an array is assigned to where it lies."""
        return _Target(variable, self.device_of(self.owner(path)))

    def settle(self):
        """Let all variables lie where they are to be."""
        n = self._network
        away = {id(block) for block, streamed in zip(n.blocks, self.streamed, strict=False) if streamed}
        for layer in (n.embed, n.ln0, *n.blocks, n.ln_out, n.head):
            for variable in layer.variables:
                devices.move(variable, self.device_of(layer), id(layer) in away)

    def run(self, calls, x, state, side):
        """Run all blocks, each where it is to be.

        calls: of each block a function (values of its variables, x, its state, side) -> (x, its new state, side), of
        whose side only new names count. x (B, T, D), state: of each block, side: what the first is called with.
        Returns x after the last block and the new states.
        """
        new, weights = [], _Weights(self, self._network.blocks)
        for i, (call, here) in enumerate(zip(calls, state, strict=True)):
            values = weights.of(i, x)
            x, here, side = devices.put((x, here, side), self.devices[i])
            with devices.on(self.devices[i]):
                x, here, after = call(values, x, here, side)
            side = {**after, **side}
            new.append(here)
            del values  # before those of another block are fetched
        return x, new

    def refuse_models(self):
        """The ValueError for a Keras model on such a network."""
        raise ValueError(
            "A Keras model, for `fit` and `predict`, `training_model` and `build_cache_model` alike, computes on one "
            f"device, {self.home}, and this network lies on {', '.join(dict.fromkeys(self.devices))}"
            f"{', some of it streamed' if any(self.streamed) else ''}. It reads and writes: `forward`, `prefill`, "
            f"`score`, `generate`, `stream`. To train, build with a strategy of one part for "
            f"that device, '{self.home.partition(':')[0]} fp32i8' for example."
        )


def placed(network, places):
    """The `Placement` of a backbone, None if it lies on the default device anyway.

    Raises ValueError for devices that are not there, and where the backend computes on one only.
    """
    found = Placement(network, places)
    if not found.is_needed:
        return None
    if not devices.are_several():
        raise ValueError(
            f"This backend computes on {found.home} only, and streams nothing. For other devices, and for '+', run on "
            "JAX or PyTorch (KERAS_BACKEND=jax)."
        )
    return found


class _Target:
    """A variable on a device, for `weights.loading.assign`."""

    def __init__(self, variable, device):
        self._variable, self._device = variable, device
        self.shape, self.dtype = variable.shape, variable.dtype
        self.scheme = getattr(variable, "scheme", None)

    def assign(self, array):
        with devices.on(self._device):
            self._variable.assign(adopt(array))

    def assign_packed(self, arrays):
        with devices.on(self._device):
            self._variable.assign_packed(arrays)

    def pack(self, pieces):
        with devices.on(self._device):
            self._variable.pack(pieces)


class _Weights:
    """The values of the variables of blocks, those of streamed ones fetched while the block before computes."""

    def __init__(self, placement, blocks):
        self._placement, self._blocks, self._fetched = placement, blocks, None
        self._left = [i for i, away in enumerate(placement.streamed) if away]
        self._fetch()

    def of(self, i, x):
        """Those of block i, which is called with x: at most one other block is on its way or on the device then."""
        if not self._placement.streamed[i]:
            return self._as_they_lie(i)
        values, self._fetched = self._fetched.arrived(), None
        devices.wait(x)  # what was fetched for the block before is given up now
        self._fetch()
        return values

    def _fetch(self):
        if self._left:
            i = self._left.pop(0)
            self._fetched = devices.Fetched(self._as_they_lie(i), self._placement.devices[i])

    def _as_they_lie(self, i):
        return [variable.value for variable in self._blocks[i].variables]
