"""A network for loops that run operation by operation: its steps of one token are programs of their own."""

from bert4keras_rwkv.ops.compile import compiled, wants_steps


def stepped(network, variables):
    """What loop.py takes as `network`, of a network and a function that gives its variables.

    It is the network itself where whole loops are compiled, and where it lies on several devices.
    """
    if not wants_steps() or getattr(network, "placement", None) is not None:
        return network
    return _Stepped(network, variables)


class _Stepped:
    def __init__(self, network, variables):
        self._network = network
        self._hidden = compiled(network.hidden, variables, again=True)
        self.logits = compiled(network.logits, variables, again=True)

    def hidden(self, ids, state, present=None):
        """`network.hidden`, of one token by its program."""
        return (self._hidden if ids.shape[1] == 1 else self._network.hidden)(ids, state, present)
