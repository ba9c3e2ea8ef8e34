"""Token ids and a state in, hidden states (or logits) and a state out: the one forward pass."""

import contextlib
import importlib
import weakref
from functools import partial
from numbers import Integral

import numpy as np

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers import initial
from bert4keras_rwkv.layers.base import Layer
from bert4keras_rwkv.layers.block import Block, layer_norm
from bert4keras_rwkv.layers.embedding import Embedding
from bert4keras_rwkv.layers.projection import (
    MergedKernel,
    Rows,
    Watched,
    dense,
    is_packed,
    kernel_variable,
    lora_of,
    quantised_as,
    scheme_of,
)
from bert4keras_rwkv.layers.start_state import StartState
from bert4keras_rwkv.models.lora import described, prepare
from bert4keras_rwkv.ops.backend import accumulation_dtype, dtype_name
from bert4keras_rwkv.ops.executables import Description
from bert4keras_rwkv.ops.token_shift import shift_rows
from bert4keras_rwkv.state import RWKVState

PLAIN = (bool, int, float, str, tuple, list, type(None))
RESCALE_FLOAT16 = 6  # blocks; what the official program takes in float16
GIVEN = ("ids", "present", "reset", "rows")  # what `side` has before the first block
TUNED_STATE = "tuned_state"  # in a file of weights: that it has one, and whether with last inputs


def version_module(model):
    """The file of a version: `layers/rwkv6.py` for 'rwkv6'."""
    return importlib.import_module(f"..layers.{model}", __package__)


def new_block(config, i, dtype, kernel="auto", blank=False, rescale_layer=0):
    """The `Block` of layer i. Arguments as for `Backbone`; dtype: a dtype or policy."""
    version = version_module(config.model)
    values = version.initial_values(config, i)
    if blank:
        values = keras.tree.map_structure(lambda _: initial.blank, values)
    time = version.TimeMix(config, i, values["time_mix"], kernel=kernel, name="time_mix", dtype=dtype)
    channel = version.ChannelMix(config, i, values["channel_mix"], name="channel_mix", dtype=dtype)
    here, after = _scale(i, rescale_layer), _scale(i + 1, rescale_layer)
    return Block(time, channel, config.layer_norm_epsilon, here, after < here, name=f"block_{i}", dtype=dtype)


def _scale(i, every):
    """By what x is multiplied where block i begins, if it is halved after every so many blocks."""
    return 0.5 ** (i // every) if every else 1.0


def _with_start(state, start):
    """The nested state of a layer that also knows how documents begin."""
    return {mixer: {**here, "start": start[mixer]} for mixer, here in state.items()}


def variable_at(layer, path):
    """The variable at an attribute path below a layer, 'blocks/3/time_mix/key/kernel' of a backbone."""
    for part in path.split("/"):
        if part == "kernel" and (lora_of(layer) or is_packed(layer)):  # what `kernel` gives then is no variable
            layer = kernel_variable(layer)
        else:
            layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
    return layer


def as_computed(block, x, side):
    """x (B, T, D), and what crosses layers, in the dtype that a block computes in."""
    dtype = block.compute_dtype
    others = {name: value for name, value in side.items() if name not in GIVEN and dtype_name(value) != dtype}
    x = x if dtype_name(x) == dtype else ops.cast(x, dtype)
    return x, {**side, **{name: ops.cast(value, dtype) for name, value in others.items()}}


def called_with(block, values, x, state, side):
    """`block(x, state, side)` with other values of its variables than they have."""
    x, side = as_computed(block, x, side)
    with keras.StatelessScope(state_mapping=list(zip(block.variables, values, strict=True))):
        return block(x, state, side)


def last_real(x, present=None):
    """The vectors of x (B, T, D) at each row's last real token, (B, D)."""
    if present is None or x.shape[1] == 1:
        return x[:, -1]
    at = ops.arange(ops.shape(x)[1], dtype="int32")
    last = ops.max(ops.where(ops.cast(present, "bool"), at, 0), axis=1)
    return ops.take_along_axis(x, last[:, None, None], axis=1)[:, 0]


def facts(layer):
    """What a layer computes with beside its weights and sublayers, in a form that can be compared and printed.

    Two layers of one kind whose facts, and those of whose sublayers, are equal compute the same with equal weights.
    """
    plain = {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "name" and isinstance(value, PLAIN)
    }
    activation = getattr(getattr(layer, "activation", None), "__qualname__", None)
    own = (type(layer).__qualname__, layer.dtype_policy.name, quantised_as(layer), repr(scheme_of(layer)), activation)
    return (*own, repr(sorted(plain.items())))


def layer_state(wkv, shift, i):
    """The nested state of layer i, of the two arrays of an RWKVState."""
    return {"time": {"x": shift[:, 2 * i, 0], "wkv": wkv[:, i]}, "channel": {"x": shift[:, 2 * i + 1, 0]}}


def side_values(ids, present=None, reset=None):
    """The `side` with which the first block is called, see `Block`."""
    rows = shift_rows(present, reset) if present is not None and ids.shape[1] != 1 else None
    return dict(zip(GIVEN, (ids, present, reset, rows), strict=True))


def recomputed(block, x, state, side):
    """`block(x, state, side)`, whose activations are computed again in the backward pass.

    Of `side` only what blocks hand on to each other goes through `keras.remat`, which on TensorFlow knows no None. Its
    function is a new one each time, for JAX keeps what it traced of a function, and the weights of that time in it.
    """

    def handed_on(side):
        return {name: value for name, value in side.items() if name not in GIVEN}

    def forward(x, state, extra):
        x, state, after = block(x, state, {**side, **extra})
        return x, state, handed_on(after)

    x, state, extra = keras.remat(forward)(x, state, handed_on(side))
    return x, state, {**side, **extra}


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Backbone(Layer):
    """Embedding, blocks, final norm and head of any version.

    config: RWKVConfig. kernel: see `ops.kernels.choose`. pad_token_id: the id that `call` masks, None: none.
    head: whether `call` gives logits or hidden states. remat: recompute each block in the backward pass.
    rescale_layer: after every so many blocks x is halved, and what the mixers add with it; the logits do not change,
    but float16 does not overflow. 0: never. None: 6 if float16 is computed with, else 0.
    blank: weights start at zero, for they are about to be read from a file; else as the authors start training.
    quantization: a `Quantization`, in which weights that are loaded are stored, or None.
    dtypes: of each block, and of the norm and head behind them, where they differ; None: all are `dtype`. Else `dtype`
    is that of the state, and the embedding has that of the first block.
    tuned: what is tuned, LoRA and states, see `lora.described`; {} for nothing.

    Called with (ids (B, T) int [, wkv, shift [, reset (B, T)]]) it returns (outputs, wkv, shift): outputs are (B, T, V)
    float32 logits or (B, T, D) hidden states and carry the Keras mask `ids != pad_token_id`. `read` is the same with
    everything explicit.
    """

    placement = None  # a `Placement`, where blocks lie on other devices than the default one

    def __init__(
        self,
        config,
        kernel="auto",
        pad_token_id=0,
        head=True,
        remat=False,
        rescale_layer=None,
        blank=False,
        tuned=None,
        quantization=None,
        dtypes=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if pad_token_id is not None and not (isinstance(pad_token_id, Integral) and abs(pad_token_id) < 2**31):
            raise ValueError(f"`pad_token_id` is an int, or None to mask nothing. Received: {pad_token_id!r}.")
        self._users = weakref.WeakSet()
        self.config, self.pad_token_id, self.with_head, self.remat = config, pad_token_id, head, remat
        self.kernel, self._tuned_at_first = kernel, tuned
        count = config.num_hidden_layers
        self.dtypes = None if dtypes is None else tuple(dtypes)
        policies = self.dtypes or (self.dtype_policy,) * (count + 1)
        halves = "float16" in (self.dtypes or (self.compute_dtype,))
        self.rescale_layer = every = _rescale_layer(rescale_layer, halves)

        def norm(name, policy, scale=1.0):
            return layer_norm(name, config.layer_norm_epsilon * scale**2, policy)

        V, D = config.vocab_size, config.hidden_size
        embedding = initial.blank if blank else initial.uniform(1e-4)
        self.embed = Embedding(V, D, embedding, name="embed", dtype=policies[0])
        self.ln0 = norm("ln0", policies[0])
        self.blocks = [new_block(config, i, policies[i], kernel, blank, every) for i in range(count)]
        self.ln_out = norm("ln_out", policies[count], _scale(count, every))
        self.start_states = []  # a `StartState` a layer, once states are tuned
        self.head = dense(V, "head", initial.blank if blank else initial.orthogonal(0.5), policies[count])
        if quantization is not None and blank:
            quantization.pack(self)

    def _placed(self, layer):
        """A context in which the variables of a layer are made where they will lie."""
        return contextlib.nullcontext() if self.placement is None else self.placement.storing(layer)

    def build(self, *_):
        shape = (None, None, self.config.hidden_size)
        with self._placed(self.embed):
            self.embed.build((None, None))
        for layer in (self.ln0, *self.blocks, self.ln_out, self.head):
            with self._placed(layer):
                layer.build(shape)
        self.built = True
        for layer in self._flatten_layers():
            if isinstance(layer, Watched):
                layer.watcher = weakref.WeakMethod(self.changed)
            if isinstance(layer, Rows):
                layer.form = self.kernel
        if self._tuned_at_first:
            prepare(self, self._tuned_at_first)
        self.settle()

    def settle(self):
        """Let all variables lie where the placement says, if there is one, whatever was assigned to them."""
        if self.placement is not None:
            self.placement.settle()

    def used_by(self, user):
        """Let a Keras model, or what has `forget_programs`, do that when there are other variables. It may vanish."""
        self._users.add(user)

    def called_by(self, layer):
        """`used_by` the Keras model that is being called, of which `layer` is a part: users' own too.

        On JAX a model that `fit` calls is not found so, but there it traces anew by itself. Raises ValueError for a
        backbone whose blocks lie elsewhere: a Keras model computes on one device, the default one.
        """
        self.check_one_device()
        self._users.add(layer._get_call_context().entry_layer)

    def check_one_device(self):
        """Raise a ValueError unless a Keras model can compute it: all of it on the default device, nothing streamed."""
        if self.placement is not None:
            self.placement.refuse_models()

    def changed(self):
        """There are other variables than before, or others that train: no program compiled before may run again.

        A Keras model that has trained must be compiled anew; Keras says so.
        """
        for user in tuple(self._users):
            if hasattr(user, "forget_programs"):
                user.forget_programs()
            elif isinstance(user, keras.Model):
                user.train_function = user.test_function = user.predict_function = None
                _let_go(user)

    def variable_at(self, path):
        """The variable at an attribute path, 'blocks/3/time_mix/key/kernel'."""
        return variable_at(self, path)

    def value_at(self, path):
        """What `variable_at` gives, for reading only: a kernel with its LoRA added, if it has one."""
        owner, _, name = path.rpartition("/")
        layer = variable_at(self, owner)
        return MergedKernel(layer) if name == "kernel" and lora_of(layer) else variable_at(self, path)

    @property
    def state_dtypes(self):
        """The dtypes of `wkv` and `shift`."""
        return accumulation_dtype(self.compute_dtype), self.compute_dtype

    def read(self, ids, state, present=None, reset=None):
        """ids (B, T) int, the state of each layer (a list, see `unpack`), present and reset (B, T) bool or None.

        Returns the hidden states (B, T, D) before the final norm and the new states. Every token with `present`
        False leaves the state as it was; where `reset` is true a document begins, in the tuned state if there is one.
        """
        if reset is not None and self.start_states:
            state = [_with_start(here, start) for here, start in zip(state, self._tuned(), strict=True)]
        (x, side), new = self.enter(ids, present, reset), []
        if self.placement is not None:
            return self.placement.run([partial(called_with, block) for block in self.blocks], x, state, side)
        for block, layer_state in zip(self.blocks, state, strict=True):
            run = recomputed if self.remat else Block.__call__
            x, cast = as_computed(block, x, side)
            x, layer_state, after = run(block, x, layer_state, cast)
            side = {**after, **side}
            new.append(layer_state)
        return x, new

    def enter(self, ids, present=None, reset=None):
        """What the first block is called with, but for its state: x (B, T, D) and `side`."""
        with self._placed(self.embed):
            ids = ops.clip(ops.cast(self._brought(ids, self.embed), "int32"), 0, self.config.vocab_size - 1)
            return self.ln0(self.embed(ids)), side_values(ids, present, reset)

    def hidden(self, ids, state, present=None):
        """`read`, and of the hidden states only those of each row's last real token, (B, D).

        For a row of which `present` shows no token they mean nothing.
        """
        x, state = self.read(ids, state, present)
        return last_real(x, present), state

    def logits(self, hidden):
        """(..., D) before the final norm -> (..., V) float32."""
        with self._placed(self.head):
            return ops.cast(self.head(self.outputs(hidden)), self.state_dtypes[0])

    def outputs(self, hidden):
        """(..., D) before the final norm -> behind it, where the head lies."""
        with self._placed(self.head):
            return self.ln_out(self._brought(hidden, self.head))

    def _brought(self, x, layer):
        """A tensor where a layer lies."""
        return x if self.placement is None else self.placement.brought(x, layer)

    def unpack(self, wkv, shift):
        """The two arrays of an RWKVState -> the nested state of each layer."""
        wkv = ops.cast(wkv, self.state_dtypes[0])
        shifts = {dtype: ops.cast(shift, dtype) for dtype in dict.fromkeys(self._block_dtypes())}
        return [layer_state(wkv, shifts[dtype], i) for i, dtype in enumerate(self._block_dtypes())]

    def pack(self, state):
        """The nested state of each layer -> the two arrays of an RWKVState."""
        wkv = ops.stack([layer["time"]["wkv"] for layer in state], axis=1)
        last = [x for layer in state for x in (layer["time"]["x"], layer["channel"]["x"])]
        if self.dtypes is not None:
            last = [ops.cast(x, self.compute_dtype) for x in last]
        return wkv, ops.stack(last, axis=1)[:, :, None]

    def _block_dtypes(self):
        """The dtype that each block computes in."""
        return [block.compute_dtype for block in self.blocks]

    def start(self, batch):
        """The nested state of each layer before the first token: the tuned one, else zero."""
        if self.start_states:
            return keras.tree.map_structure(lambda x: ops.broadcast_to(x, (batch, *x.shape[1:])), self._tuned())
        wkv, shift = RWKVState.shapes(self.config)
        wkv_dtype, dtype = self.state_dtypes
        return self.unpack(ops.zeros((batch, *wkv), wkv_dtype), ops.zeros((batch, *shift), dtype))

    def tune_states(self, shift=False):
        """Give every layer a `StartState`. shift: with weights for the last inputs, too."""
        wkv, _ = RWKVState.shapes(self.config)
        with self.extended():
            for i in range(len(self.blocks)):
                layer = StartState(
                    wkv[1:], self.config.hidden_size, shift, name=f"start_state_{i}", dtype=self.dtype_policy
                )
                layer.build()
                self.start_states.append(layer)
        self.changed()

    def _tuned(self):
        """The nested tuned state of each layer, of one row."""
        return [layer.values(dtype) for layer, dtype in zip(self.start_states, self._block_dtypes(), strict=True)]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.start_states:
            store[TUNED_STATE] = np.array(self.start_states[0].shift)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        if TUNED_STATE not in set(store.keys()):
            return  # and the tuned state stays as it is
        shift = bool(np.asarray(store[TUNED_STATE]))
        if not self.start_states or self.start_states[0].shift != shift:
            raise ValueError(
                "These weights have a tuned initial state, which this model has no room for. Call "
                f"`RWKV.enable_state_tuning(time_shift_tuning={shift})` on a model of its own before `load_weights`."
            )

    def description(self, *modules):
        """The `Description` of programs that run this network as it is now, made in `modules`."""
        layers = self._flatten_layers()
        made = [facts(layer) for layer in layers]
        paths = [variable.path for variable in self.variables]
        code = {*modules, __name__, *(type(layer).__module__ for layer in layers)}
        return Description((self._own_config(), made, paths), tuple(sorted(code)))

    def call(self, ids, wkv=None, shift=None, reset=None):
        self.called_by(self)
        state = self.start(ops.shape(ids)[0]) if wkv is None else self.unpack(wkv, shift)
        present = None if self.pad_token_id is None else ops.not_equal(ids, self.pad_token_id)
        hidden, state = self.read(ids, state, present, reset)
        return (self.logits(hidden) if self.with_head else self.ln_out(hidden), *self.pack(state))

    def compute_output_spec(self, ids, wkv=None, shift=None, reset=None):
        c, (wkv_dtype, dtype) = self.config, self.state_dtypes
        wkv_shape, shift_shape = RWKVState.shapes(c)
        width, out = (c.vocab_size, wkv_dtype) if self.with_head else (c.hidden_size, dtype)
        return (
            keras.KerasTensor((*ids.shape, width), out),
            keras.KerasTensor((ids.shape[0], *wkv_shape), wkv_dtype),
            keras.KerasTensor((ids.shape[0], *shift_shape), dtype),
        )

    def compute_mask(self, inputs, previous_mask=None):
        if self.pad_token_id is None:
            return None
        return ops.not_equal(inputs, self.pad_token_id), None, None

    def _own_config(self):
        own = {"kernel": self.kernel, "pad_token_id": self.pad_token_id, "head": self.with_head, "remat": self.remat}
        mixed = {} if self.dtypes is None else {"dtypes": list(self.dtypes)}
        return {**own, **mixed, "rescale_layer": self.rescale_layer, "config": self.config.to_dict()}

    def get_config(self):
        tuned = {"tuned": described(self)} if self.built else {}
        return {**super().get_config(), **self._own_config(), **tuned}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "config": RWKVConfig.from_dict(config["config"]), "blank": True})


def _let_go(model):
    """Do away with an optimizer that was built for variables that trained; evaluation builds it too, on PyTorch."""
    optimizer = getattr(model, "optimizer", None)  # absent before `compile`
    if optimizer is None or not optimizer.built:
        return
    if int(ops.convert_to_numpy(optimizer.iterations)):
        model.compiled = False
    else:
        model.optimizer = type(optimizer).from_config(optimizer.get_config())


def _rescale_layer(given, halves):
    """How many blocks lie between two halvings, 0 for none. halves: whether float16 is computed with."""
    if given is None:
        return RESCALE_FLOAT16 if halves else 0
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ValueError(
            "`rescale_layer` is after how many blocks the residual stream is halved, 0 for never. "
            f"Received: rescale_layer={given!r}."
        )
    return given
