"""Generation as a Keras model: what `build_cache_model` returns."""

import dataclasses
import sys

import numpy as np

from bert4keras_rwkv.generation.loop import CHUNKS, front_pack, generate
from bert4keras_rwkv.generation.noise import threefry2x32
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.generation.stepped import stepped
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.backend import host_call
from bert4keras_rwkv.ops.compile import compiled

LOOP = "generate_loop"  # the name of a cache model's one layer


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class GenerateLoop(keras.layers.Layer):
    """[ids, (wkv, shift), (seeds)] -> [ids, (wkv, shift), (seeds)], see `cache_model`.

    The whole generation is one compiled program, kept by the layer; inside another compiled function, `predict` for
    one, it becomes part of that. Its loops are never run symbolically: `compute_output_spec` says what comes out.
    """

    def __init__(
        self, network, sampling, ends, seed, pad_token_id, outputs, chunks, progress_print, vocabulary=None, **kwargs
    ):
        super().__init__(**{"autocast": False, "trainable": False, **kwargs})
        self.network = network
        # The layer that owns the weights: tracked, so that they are arguments of every compiled program.
        self.weighted = network if isinstance(network, keras.layers.Layer) else network.layer
        self.sampling, self.ends, self.seed = sampling, ends, seed
        self.pad_token_id, self.outputs, self.chunks = pad_token_id, outputs, chunks
        self.progress_print, self.vocabulary = progress_print, vocabulary
        self.noise = keras.random.SeedGenerator()
        self.forget_programs()
        if hasattr(network, "used_by"):
            network.used_by(self)

    def forget_programs(self):
        """The compiled program knows the variables that there were."""
        self.program = compiled(self._generate, lambda: self.variables)
        self._stepped = stepped(self.network, lambda: self.weighted.variables)

    def build(self, input_shapes):
        # Where this batch begins in the data: the row that an int seed is counted from.
        self.first_row = self.add_weight(
            name="first_row", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.built = True

    def compute_output_spec(self, inputs):
        batch = inputs["ids"].shape[0]
        return [keras.KerasTensor((batch, *shape), dtype, name=name) for name, shape, dtype in self.outputs]

    def call(self, inputs):
        if hasattr(self.network, "called_by"):
            self.network.called_by(self)
        inputs = dict(inputs)
        drawn = "seeds" not in inputs and self.seed is None and not self.sampling.plan().greedy
        if drawn:
            inputs["key"] = self.noise.next()
        result = self.program(inputs, self.sampling.values(1))
        return [result[name] for name, _, _ in self.outputs]

    def get_config(self):
        own = {
            name: getattr(self, name)
            for name in ("ends", "seed", "pad_token_id", "outputs", "progress_print", "vocabulary")
        }
        own |= {"chunks": self.chunks, "sampling": dataclasses.asdict(self.sampling)}
        return {**super().get_config(), **own, "network": keras.saving.serialize_keras_object(self.network)}

    @classmethod
    def from_config(cls, config):
        network = keras.saving.deserialize_keras_object(config["network"])
        if not network.built:
            network.build()
        outputs = [(name, tuple(shape), dtype) for name, shape, dtype in config["outputs"]]
        own = {"network": network, "sampling": Sampling(**config["sampling"]), "outputs": outputs}
        return cls(**{**config, **own, "ends": tuple(config["ends"]), "chunks": tuple(config["chunks"])})

    def check_ids(self, ids):
        """A ValueError for an array that holds something else than ids and `pad_token_id`."""
        if self.vocabulary is None:  # a file that was saved before it was known here
            return
        whole = ids.dtype.kind in "iu" or (ids.dtype.kind == "f" and bool(np.all(ids == np.floor(ids))))
        wrong = ids[(ids != self.pad_token_id) & ~((ids >= 0) & (ids < self.vocabulary))] if whole else ids.ravel()
        if wrong.size:
            raise ValueError(
                f"A token id is 0 to {self.vocabulary - 1} in this model's vocabulary, or the padding, "
                f"{self.pad_token_id}. Received: {wrong[0]}."
            )

    def _generate(self, inputs, values):
        """One batch from prompts to texts; compiled."""
        present = ops.not_equal(inputs["ids"], self.pad_token_id)
        ids, length = front_pack(inputs["ids"], present, self.pad_token_id)
        batch = ops.shape(ids)[0]
        if "wkv" in inputs:
            state = self.network.unpack(_rows(inputs["wkv"], batch), _rows(inputs["shift"], batch))
        else:
            state = self.network.start(batch)
        seeds = _rows(inputs["seeds"], batch) if "seeds" in inputs else self._seeds(inputs.get("key"), batch)
        carry = generate(
            self._stepped,
            self.sampling.plan(),
            self.ends,
            ids,
            length,
            ops.full((batch,), ids.shape[1], "int32"),
            state,
            seeds,
            values,
            self.chunks,
            _report if self.progress_print else None,
        )
        wkv, shift = self.network.pack(carry.state)
        return {"ids": carry.ids, "wkv": wkv, "shift": shift, "seeds": carry.seeds}

    def _seeds(self, key, batch):
        """(batch, 2) int32: (seed + row, 0), or new ones for each draw of `key`."""
        row = ops.arange(batch, dtype="int32")
        if key is not None:
            key = ops.cast(ops.bitwise_and(key, ops.convert_to_tensor(0x7FFFFFFF, key.dtype)), "int32")
            first, _ = threefry2x32((key[:1], key[1:]), (row, ops.zeros_like(row)))
        else:
            first = row + self.first_row + _int32(self.seed or 0)
        return ops.stack([first, ops.zeros_like(row)], 1)


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class CacheModel(keras.Model):
    """A functional model around one `GenerateLoop`. `predict` compiles once for any number of rows."""

    @property
    def loop(self):
        return self.get_layer(LOOP)

    def __call__(self, inputs, *args, **kwargs):
        """Ids alone are taken as well as a list of them."""
        inputs = [inputs] if hasattr(inputs, "shape") else inputs
        if isinstance(inputs, list | tuple):
            self._check(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """As `keras.Model.predict`. The last batch is filled up with empty rows, which generate nothing."""
        arrays = self._arrays(x)
        if arrays is None:
            return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)
        rows, batch = len(arrays[0]), min(batch_size or 32, len(arrays[0]))
        arrays = [np.repeat(array, rows, axis=0) if len(array) == 1 else array for array in arrays]
        missing = -rows % batch
        fills = [self.loop.pad_token_id] + [0] * len(arrays[1:])
        arrays = [_lengthened(array, missing, fill) for array, fill in zip(arrays, fills, strict=True)]
        answers = self._predict_batches(arrays, batch, verbose=verbose, callbacks=callbacks)
        return keras.tree.map_structure(lambda answer: answer[:rows], answers)

    def _arrays(self, x):
        """The inputs as a list of NumPy arrays, or None when they are a dataset or the like."""
        if isinstance(x, dict):
            x = [x[tensor.name] for tensor in self.inputs]
        x = x if isinstance(x, list | tuple) else [x]
        if not all(hasattr(array, "shape") or isinstance(array, list | tuple) for array in x):
            return None
        arrays = [ops.convert_to_numpy(array) for array in x]
        self._check(arrays)
        self.loop.check_ids(arrays[0])
        return arrays

    def _check(self, arrays):
        """A ValueError for inputs of other shapes than the model has; Keras would cut or pass on some of them."""
        for array, tensor in zip(arrays, self.inputs, strict=False):
            shape = tuple(getattr(array, "shape", tensor.shape))
            if shape[1:] != tuple(tensor.shape[1:]) or shape[0] == 0:
                wanted = ", ".join(map(str, tensor.shape[1:]))
                raise ValueError(
                    f"`{tensor.name}` is (B, {wanted}), with at least one row. Received: {shape}. The length is that "
                    "of prompt and answer together, `input_lengths` of `build_cache_model`."
                )

    def _predict_batches(self, arrays, batch, **options):
        rows = len(arrays[0])
        if self.loop.seed is None or rows == batch:
            return super().predict(arrays, batch_size=batch, **options)
        # An int seed is counted from the first row of the data, not of each batch.
        answers = []
        for row in range(0, rows, batch):
            self.loop.first_row.assign(row)
            answers.append(super().predict([array[row : row + batch] for array in arrays], batch_size=batch, **options))
        self.loop.first_row.assign(0)
        return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *answers)


def cache_model(
    network,
    length,
    end_token,
    sampling,
    vocabulary,
    wkv_shape,
    shift_shape,
    shift_dtype="float32",
    pad_token_id=0,
    input_state=False,
    output_state=False,
    seed=None,
    input_seed=False,
    chunks=CHUNKS,
    progress_print=False,
    name="cache_model",
):
    """A Keras model that writes on from prompts.

    Inputs, as a list: `Input-Token` (B, length) int32, prompts with `pad_token_id` anywhere around them; with
    input_state `Stack-States` (B, *wkv_shape) float32 and `Stack-Last-X` (B, *shift_shape); with input_seed `Seeds`
    (B, 2) int32, (seed, tokens generated before). Outputs: the texts (B, length) int32, at the front and followed by
    `pad_token_id`; with output_state the state that has consumed all of each text but its last token; with both
    output_state and input_seed the seeds to go on with.

    network: see loop.py, and more: `pack(state) -> (wkv, shift)`, `unpack(wkv, shift) -> state`, `start(batch) ->
    state`, and `layer`, the Keras layer that owns the weights, unless it is one. end_token: an int, several, or None.
    seed: None for new noise at each call, or an int for (seed + row, 0).
    """
    if pad_token_id is None:
        raise ValueError(
            "Without a pad id the end of a prompt cannot be found. Received: pad_token_id=None. "
            "Use pad_token_id=-1 if every id of the vocabulary is an ordinary token."
        )
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(
            "The length of the buffer is an int of at least 1. "
            f"Received: {length!r}. Use input_lengths=[512] for prompt and answer of 512 tokens together."
        )
    sampling.check(vocabulary, length)
    state = [("wkv", wkv_shape, "float32"), ("shift", shift_shape, shift_dtype)]
    seeds = [("seeds", (2,), "int32")]
    taken = [("ids", (length,), "int32")] + state * input_state + seeds * input_seed
    given = [("ids", (length,), "int32")] + state * output_state + seeds * (output_state and input_seed)
    loop = GenerateLoop(
        network, sampling, _ends(end_token), seed, pad_token_id, given, chunks, progress_print, vocabulary, name=LOOP
    )
    shown = {"ids": "Input-Token", "wkv": "Stack-States", "shift": "Stack-Last-X", "seeds": "Seeds"}
    inputs = {key: keras.Input(shape, dtype=dtype, name=shown[key]) for key, shape, dtype in taken}
    outputs = loop(inputs)
    return CacheModel(list(inputs.values()), outputs if len(outputs) > 1 else outputs[0], name=name)


def _ends(end_token):
    ends = () if end_token is None else tuple(np.asarray(end_token).ravel().tolist())
    if any(isinstance(end, bool) or not isinstance(end, int) for end in ends):
        raise ValueError(
            "`end_token` is the id that ends a text, an int or a list of ints. "
            f"Received: end_token={end_token!r}. Use None if only the length ends it."
        )
    return ends


def _int32(number):
    """An int of any size as an int32 with the same last 32 bits."""
    return int(np.uint32(number & 0xFFFFFFFF).astype("int32"))


def _rows(x, batch):
    """A tensor of batch 1 for every row of `batch`."""
    return ops.broadcast_to(x, (batch, *x.shape[1:])) if x.shape[0] == 1 else x


def _lengthened(array, rows, fill):
    return np.concatenate([array, np.full((rows, *array.shape[1:]), fill, array.dtype)]) if rows else array


def _report(carry):
    host_call(_print_progress, carry.position, carry.start, carry.live)


def _print_progress(position, start, live):
    end = "" if live.any() else "\n"
    print(
        f"\r{(position - start).max()} tokens, {live.sum()} of {live.size} rows", end=end, file=sys.stderr, flush=True
    )
