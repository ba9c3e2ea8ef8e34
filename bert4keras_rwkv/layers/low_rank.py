"""Low-rank projections: C -> rank -> C', one or several side by side."""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.base import Layer
from bert4keras_rwkv.layers.projection import Factor, Projections, dense


class LowRank(Layer):
    """b(tanh(a x)): x (B, T, C) -> (B, T, units), or (B, T, groups, units) for several groups.

    a: a Dense layer to groups * rank. b: a Dense layer, or for groups `Projections` of kernel (groups, rank, units)
    with a bias (groups, units). `initial` gives the initializers of 'a', 'b' and, for groups, 'bias'.
    """

    def __init__(self, units, rank, initial, groups=None, activation="tanh", **kwargs):
        super().__init__(**kwargs)
        self.units, self.rank, self.groups = units, rank, groups
        policy = self.dtype_policy
        self.a = dense(rank * (groups or 1), "a", initial["a"], policy, Factor, activation=activation)
        if groups is None:
            self.b = dense(units, "b", initial["b"], policy, Factor)
        else:
            self.b = Projections(
                "btgr,gru->btgu",
                output_shape=(None, groups, units),
                bias_axes="gu",
                kernel_initializer=initial["b"],
                bias_initializer=initial["bias"],
                name="b",
                dtype=policy,
            )

    def build(self, shape):
        self.a.build(shape)
        rank = (self.rank,) if self.groups is None else (self.groups, self.rank)
        self.b.build((None, None, *rank))

    def call(self, x):
        x = self.a(x)
        if self.groups is not None:
            x = ops.reshape(x, (*ops.shape(x)[:2], self.groups, self.rank))
        return self.b(x)

    def apart(self, x):
        """What a call gives for several groups, as a list of one (B, T, units) each."""
        return self.b.apart(self.a(x))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units) if self.groups is None else (*shape[:-1], self.groups, self.units)
