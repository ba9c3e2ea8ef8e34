"""What the user holds: a model with its tokenizer, its way of sampling, and everything one does with them."""

import dataclasses

import keras
import numpy as np
from keras import ops

from bert4keras_rwkv.generation import loop
from bert4keras_rwkv.generation.compile import compiled
from bert4keras_rwkv.generation.layer import cache_model
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models import lora, tuning
from bert4keras_rwkv.models.reading import Reader
from bert4keras_rwkv.models.segments import segment_trainer
from bert4keras_rwkv.models.texts import Prompts, token_ids
from bert4keras_rwkv.models.training import training_model
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights.adapters import ALPHA, read_adapter
from bert4keras_rwkv.weights.files import named
from bert4keras_rwkv.weights.formats.keras_h5 import write_preset
from bert4keras_rwkv.weights.merging import merge_into
from bert4keras_rwkv.weights.rules import export, rules_of
from bert4keras_rwkv.weights.states import read_state, write_state

NEW_TOKENS = 256  # how many `generate` writes when neither max_length nor sequence_length says it
BUFFER = 64  # buffers of `generate` are multiples of this, so that few programs are compiled


class RWKV:
    """A language model. Made by `build_transformer_model` or `RWKV.from_preset`.

    model: a functional Keras model for `fit`, `predict`, `summary`, `save_weights`, `export`; it shares its weights
    with everything else here. config: RWKVConfig. backbone: the layer that holds the weights. tokenizer:
    a `tokenizers.Tokenizer` or None; it may be set. sampling: how `generate` draws when it is not told.
    """

    def __init__(
        self,
        backbone,
        tokenizer=None,
        sampling=None,
        sequence_length=None,
        with_lm="linear",
        input_state=False,
        output_state=False,
        packed=False,
    ):
        self.backbone, self.config = backbone, backbone.config
        self.tokenizer = tokenizer
        self.sampling = Sampling(top_p=0.85) if sampling is None else sampling
        self.sequence_length, self.with_lm, self.packed = sequence_length, with_lm, packed
        self._input_state, self._output_state = input_state, output_state
        self.model = _functional(backbone, sequence_length, with_lm, input_state, output_state, packed)
        self.forget_programs()
        for user in (self, self.model):
            backbone.used_by(user)

    def __reduce__(self):
        """A copy (`copy.deepcopy`, `pickle`) has weights of its own, what was tuned too; its model is not compiled."""
        told = (self.sequence_length, self.with_lm, self._input_state, self._output_state, self.packed)
        return type(self), (self.backbone, self.tokenizer, self.sampling, *told)

    def __repr__(self):
        c = self.config
        return f"<RWKV {c.model}, {c.num_hidden_layers} layers of {c.hidden_size}, vocabulary {c.vocab_size}>"

    def forward(self, ids, state=None, present=None):
        """Read tokens; logits for every position.

        ids (B, T) int, T >= 1. state: RWKVState of batch B or 1, None for the beginning of a text. present (B, T) bool:
        a token that is False does not exist. Returns (logits (B, T, V) float32, RWKVState).
        Any split of a text into calls gives the same logits and state to rounding. Gradients do not flow: use `model`.
        """
        ids, state, present = self._inputs(ids, state, present)
        logits, wkv, shift = self._read().logits(ids, state.wkv, state.shift, present)
        return logits, RWKVState(wkv, shift, self.config.model)

    def prefill(self, ids, state=None, present=None, chunk_len=256):
        """Read tokens; logits only after each row's last real token. With T = 1 this is a decoding step.

        As `forward`, but returns (logits (B, V) float32, RWKVState). chunk_len: how many tokens are read at once. The
        logits of a row without a real token mean nothing.
        """
        check_chunk(chunk_len)
        ids, state, present = self._inputs(ids, state, present)
        logits, wkv, shift = self._read().last_logits(ids, state.wkv, state.shift, present, chunk_len)
        return logits, RWKVState(wkv, shift, self.config.model)

    def score(self, ids, targets, state=None, present=None, chunk_len=256):
        """Read tokens; how likely given tokens are after each, without keeping logits.

        ids, state, present: as for `forward`. targets (B, T) int: `targets[:, t]` is asked for when `ids[:, t]` has
        been read; of a whole text they are `ids[:, 1:]` after `ids[:, :-1]`. chunk_len: tokens read at once, at most.
        Returns (log-probabilities in nats (B, T) float32, whether no token is likelier (B, T) bool, RWKVState), the
        first two as NumPy arrays, 0 and False where `present` is False. Any split of a text gives the same to rounding.
        """
        check_chunk(chunk_len)
        ids, state, present = self._inputs(ids, state, present)
        targets = token_ids(targets, self.config.vocab_size)
        if targets.shape != ids.shape:
            raise ValueError(f"`targets` has the shape of `ids`, {ids.shape}. Received: {targets.shape}.")
        values, likeliest, wkv, shift = self._read().scores(ids, targets, state.wkv, state.shift, present, chunk_len)
        if present is not None:
            values, likeliest = np.where(present, values, np.zeros_like(values)), likeliest & present
        return values, likeliest, RWKVState(wkv, shift, self.config.model)

    def generate(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        strip_prompt=False,
        sampling=None,
        seed=None,
        state=None,
        return_state=False,
    ):
        """Write on from one or several prompts.

        inputs: str, list of str, ids, or a ragged list of ids; the answer has the same form. max_length: tokens of
        prompt and answer together; None: sequence_length, or 256 more than the longest prompt. stop_token_ids: an id,
        several, None, or 'auto', the tokenizer's end token. strip_prompt: leave the prompt out of the answer. sampling:
        a `Sampling`, or 'greedy', 'top_k', 'top_p'; None: what the model was built with. seed: an int makes the answer
        repeatable, row i draws with (seed + i, 0); an (B, 2) array continues earlier draws; None: new noise.
        state: RWKVState to start from. return_state: also return the state that has consumed all but each row's last
        token. A stop token ends a row; ids contain it, text does not.
        """
        prompts, ends, sampling, limit = self._request(inputs, max_length, stop_token_ids, sampling)
        ids, length = prompts.padded(_buffer(limit))
        batch = len(ids)
        state = self._state(state, batch)
        program = self._program("generate", sampling.plan(), ends)
        texts, count, wkv, shift = program(
            ids,
            length,
            np.full(batch, limit, "int32"),
            state.wkv,
            state.shift,
            seeds(seed, batch),
            sampling.values(batch),
        )
        texts, count = ops.convert_to_numpy(texts), ops.convert_to_numpy(count)
        starts = length if strip_prompt else np.zeros_like(length)
        wrote = count > length
        answer = prompts.answers(
            [row[a:b] for row, a, b in zip(texts, starts, count, strict=True)],
            [set(ends) if w else set() for w in wrote],
        )
        return (answer, RWKVState(wkv, shift, self.config.model)) if return_state else answer

    def stream(
        self, inputs, max_length=None, stop_token_ids="auto", sampling=None, seed=None, state=None, return_state=False
    ):
        """`generate` for one prompt, piece by piece: yields text as it is written, without the prompt (ids for ids).

        A piece is what the last tokens completed: bytes of an unfinished character are held back. With return_state the
        last thing yielded is the RWKVState.
        """
        prompts, ends, sampling, limit = self._request(inputs, max_length, stop_token_ids, sampling)
        if not prompts.single:
            raise ValueError(f"`stream` takes one prompt. Received: {len(prompts.rows)}. Use `generate` for several.")
        return self._stream(prompts, ends, sampling, limit, self._state(state, 1), seeds(seed, 1), return_state)

    def _stream(self, prompts, ends, sampling, limit, state, seed, return_state):
        ids, length = prompts.padded(_buffer(limit))
        begin = self._program("begin")
        step = self._program("step", sampling.plan(), ends)
        values = sampling.values(1)
        carry = begin(ids, length, np.full(1, limit, "int32"), state.wkv, state.shift, seed)
        live, text = bool(ops.convert_to_numpy(carry.live)[0]), None
        if prompts.is_text:
            text = self.tokenizer.stream()
        while live:
            carry = step(carry, values)
            token = int(ops.convert_to_numpy(carry.token)[0])
            live = bool(ops.convert_to_numpy(carry.live)[0])
            if text is None:
                yield token
            elif token not in ends:
                piece = text.feed(token)
                if piece:
                    yield piece
        if text is not None:
            rest = text.flush()
            if rest:
                yield rest
        if return_state:
            yield RWKVState(*self._program("pack")(carry.state), self.config.model)

    def build_cache_model(
        self,
        input_lengths,
        end_token,
        search_mode="greedy",
        k=1,
        progress_print=False,
        index_bias=0,
        input_state=False,
        output_state=False,
        seed=None,
        input_seed=False,
    ):
        """A Keras model that writes on from padded prompts, as bert4keras's.

        input_lengths: [L], the length of prompt and answer together. end_token: an id or several. search_mode:
        'greedy', 'topk' with k an int above 1, 'topp' with k a share in (0, 1] or [share, count]. Penalties,
        temperature and masked ids are those the model was built with. index_bias is accepted and has no meaning here.
        progress_print: a line on stderr while it runs.

        `predict([ids (B, L)])` returns ids (B, L) int32, front-packed, the pad id behind the end; with input_state and
        output_state also `Stack-States` (B, n, H, N, N) and `Stack-Last-X` (B, 2n, 1, D); with input_seed also `Seeds`
        (B, 2) int32, (seed, tokens generated before).
        """
        lengths = [input_lengths] if isinstance(input_lengths, int) else list(input_lengths)
        if len(lengths) != 1:
            raise ValueError(f"`input_lengths` has one length, that of the ids. Received: {input_lengths!r}.")
        s = self.sampling
        options = {
            name: getattr(s, name)
            for name in (
                "temperature",
                "penalty",
                "penalty_window",
                "max_penalty_range",
                "presence_penalty",
                "frequency_penalty",
                "penalty_decay",
                "penalty_free",
                "mask_output",
                "temperature_after",
            )
        }
        wkv, shift = RWKVState.shapes(self.config)
        return cache_model(
            self.backbone,
            int(lengths[0]),
            end_token,
            Sampling.from_search_mode(search_mode, k, **options),
            self.config.vocab_size,
            wkv,
            shift,
            self.backbone.compute_dtype,
            self.backbone.pad_token_id,
            input_state,
            output_state,
            seed,
            input_seed,
            progress_print=progress_print,
        )

    def training_model(self, loss=None, accuracy=False):
        """A Keras model `Input-Token` (B, T) [, `Answer-Mask`] [, `Reset`] -> scalar loss, on the same weights.

        loss: a `layers.NextTokenLoss`, None for the default. Head and loss are computed piece by piece over time, so
        that the logits of a batch are never kept; `RWKV.model` with a loss of Keras keeps them. accuracy: with a second
        output for the metric `TokenAccuracy`, the number of tokens guessed right.
        """
        return training_model(self.backbone, self.sequence_length, self.packed, loss, accuracy)

    def segment_trainer(self, batch_size, loss=None, accuracy=False):
        """A Keras model `Input-Token`, `Reset` [, `Answer-Mask`], each (batch_size, T), -> the loss of one segment.

        For texts longer than memory allows: row b of a batch goes on where row b of the batch before ended, as in
        `PackedBatches(..., carry=True)`. Each row's state is carried from step to step, in evaluation apart from
        training; the gradient ends where a segment does. `Reset` begins a document, in the tuned state if there is one.
        The losses of all segments are those of one long pass. `reset_states()` lets all rows begin anew.
        loss, accuracy: as for `training_model`. The model was built with packed=True. This is truncated
        back-propagation through time, and a model, not a callback: the step that computes the gradient computes the
        state, and nothing is read twice.
        """
        if not self.packed:
            raise ValueError("`segment_trainer` needs the input `Reset` and no pad masking: build with packed=True.")
        return segment_trainer(self.backbone, batch_size, self.sequence_length, loss, accuracy)

    def enable_state_tuning(self, time_shift_tuning=False):
        """Make the initial state of every layer a weight, zero at first, and freeze all others but those of LoRA.

        The state is that of the recurrence, with time_shift_tuning also the two last inputs. Every text that is read or
        trained on begins in it, unless a state is given. Call it before `compile`.
        """
        tuning.enable_state_tuning(self.backbone, time_shift_tuning)

    def enable_state_tunig(self, time_shitf_tuning=False):
        """`enable_state_tuning` as bert4keras3 spells it."""
        self.enable_state_tuning(time_shitf_tuning)

    def enable_lora(self, rank, alpha=None, targets=None):
        """Give projections a LoRA each (Keras' own) and freeze all other weights, tuned states excepted.

        alpha: None for rank. targets: names of sublayers, ('receptance', 'key', 'value', 'gate', 'output') or low-rank
        ones such as 'decay_low_rank', or 'head'; None: all in the blocks. Call it before `compile`. Weights that are
        saved or exported have the LoRA added; `save_adapter` keeps it apart.
        """
        lora.enable_lora(self.backbone, rank, alpha, targets)

    def save_adapter(self, path):
        """Write what was tuned, LoRA, state and other weights that train, to a safetensors file; a LoRA alone to `.pth`
        or `.st` of others.
        """
        lora.save_adapter(self.backbone, path)

    def load_adapter(self, path, scale=1.0, alpha=ALPHA):
        """Take over an adapter file, all or nothing, and go on tuning or writing with it.

        scale: multiplies what a LoRA adds. alpha: of a foreign LoRA, whose file does not say it. With a list of files,
        and a scale for each, what the LoRAs add is added up, and tuned states are averaged with the scales as weights.
        """
        lora.load_adapter(self.backbone, path, scale, alpha)

    def merge_adapter(self, scale=1.0):
        """Add the LoRA, times `scale`, to the weights and start it anew at zero, so that another can be stacked."""
        lora.merge_adapter(self.backbone, scale)

    def tuned_state(self):
        """The tuned initial state: RWKVState of one row, to save, convert, average, or pass as `state`."""
        return tuning.tuned_state(self.backbone)

    def set_tuned_state(self, state):
        """Let every text begin in `state`, an RWKVState of one row; `enable_state_tuning` must have been called."""
        tuning.set_tuned_state(self.backbone, state)

    def save_to_preset(self, folder):
        """Write config.json, model.weights.h5 and the vocabulary to a folder, whole or not at all."""
        write_preset(folder, self.weights(), self.config, tokenizer=self.tokenizer)

    def load_state(self, path, layout="auto"):
        """The RWKVState in a file: `save_state`'s, a tuned `time_state` of RWKV-LM, RWKV-PEFT, web-rwkv or Ai00, or one
        merged into a model.

        layout: 'pth' for [head, value, key], 'st' for [head, key, value], 'own'; 'auto' decides by the kind of file,
        see `weights.states.layout_of`. Raises ValueError for the state of another model, with its sizes.
        """
        return read_state(path, self.config, layout, self.backbone.compute_dtype)

    def save_state(self, state, path, layout="auto", drop_shift=False):
        """Write an RWKVState of this model, whole or not at all.

        layout: 'own' keeps all of it; 'pth' is what RWKV-LM, RWKV-PEFT and `rwkv` read, 'st' what web-rwkv and Ai00 do:
        one text, without token-shift vectors, which must be zero unless `drop_shift`. 'auto': by the suffix, `.pth` or
        `.st`, and 'own' for any other.
        """
        state = dataclasses.replace(self._state(state, state.batch), model=self.config.model)
        write_state(path, state, layout, drop_shift)

    def merge_lora(self, path, alpha=ALPHA, base=None):
        """Merge a LoRA, PiSSA, DiSHA, Bone or Bat of RWKV-PEFT, or a LoRA of web-rwkv, into the weights.

        alpha: what a LoRA was trained with; files do not say it. base: for a PiSSA, the file of its initial factors.
        All or nothing; each weight is computed in float32 and rounded once to its dtype. There is no way back: keep the
        model's file.
        """
        first = None if base is None else read_adapter(base)
        merge_into(rules_of(self.config), self.backbone.variable_at, read_adapter(path), alpha, first)

    def weights(self):
        """The weights as lazy `weights.Tensors` under official names, as `write_pth` and others take them.

        A model that Keras quantised has none to give, which is a ValueError.
        """
        if any(layer.quantization_mode is not None for layer in self.backbone._flatten_layers()):
            raise ValueError("The weights of a quantised model are rounded. Write those it had before `quantize`.")
        return export(rules_of(self.config), self.backbone.value_at)

    def forget_programs(self):
        """Compiled programs know the weights that there were."""
        self._reader, self._programs = None, {}

    @classmethod
    def from_preset(cls, preset, **options):
        """The model in a preset folder, in a weight file, or shipped with the package under a name ('finch-jargon').

        options: as for `build_transformer_model`.
        """
        from bert4keras_rwkv.models.build import build_transformer_model

        return build_transformer_model(checkpoint_path=named(preset), **options)

    def _read(self):
        if self._reader is None:
            self._reader = Reader(self.backbone)
        return self._reader

    def _inputs(self, ids, state, present):
        """What `forward` and `prefill` take, checked, as NumPy ids and mask and an RWKVState of the same batch."""
        ids = token_ids(ids, self.config.vocab_size)
        if ids.ndim != 2 or 0 in ids.shape:
            raise ValueError(f"`ids` is (B, T), with T at least 1. Received shape {ids.shape}.")
        if present is not None:
            present = np.asarray(present).astype(bool)
            if present.shape != ids.shape:
                raise ValueError(f"`present` has the shape of `ids`, {ids.shape}. Received: {present.shape}.")
        return ids, self._state(state, len(ids)), present

    def _state(self, state, batch):
        """An RWKVState of this batch."""
        dtype = self.backbone.compute_dtype
        if state is None:
            if not self.backbone.start_states:
                return RWKVState.zeros(self.config, batch, dtype)
            state = self.tuned_state()
        if state.model not in (None, self.config.model):
            raise ValueError(f"This is a state of {state.model}, the model is {self.config.model}.")
        wanted = RWKVState.shapes(self.config)
        received = (tuple(state.wkv.shape[1:]), tuple(state.shift.shape[1:]))
        if received != wanted or len({1, batch, state.batch, state.shift.shape[0]} - {1}) > 1:
            raise ValueError(
                f"For {batch} rows the state is wkv {(batch, *wanted[0])} and shift {(batch, *wanted[1])}, or of batch "
                f"1. Received: wkv {tuple(state.wkv.shape)}, shift {tuple(state.shift.shape)}."
            )
        if state.batch == batch and state.shift.shape[0] == batch:
            return state
        wkv, shift = (ops.broadcast_to(x, (batch, *x.shape[1:])) for x in (state.wkv, state.shift))
        return RWKVState(wkv, shift, state.model)

    def _request(self, inputs, max_length, stop_token_ids, sampling):
        """What `generate` and `stream` take, checked: prompts, ending ids, Sampling, tokens in all."""
        prompts = Prompts(inputs, self.tokenizer, self.config.vocab_size)
        if isinstance(sampling, str):
            sampling = Sampling.named(sampling)
        elif sampling is None:
            sampling = self.sampling
        if prompts.is_text:  # rows of the head without a text: the World vocabulary fills 65,530 of 65,536
            unused = self.tokenizer.without_text(self.config.vocab_size)
            sampling = dataclasses.replace(sampling, mask_output=(*sampling.mask_output, *unused))
        sampling.check(self.config.vocab_size, 0)
        if isinstance(stop_token_ids, str):
            if stop_token_ids != "auto":
                raise ValueError(
                    f"`stop_token_ids` is an id, a list of ids, None or 'auto'. Received: {stop_token_ids!r}."
                )
            end = None if self.tokenizer is None else self.tokenizer.end_token
            ends = () if end is None else (end,)
        else:
            ends = (
                ()
                if stop_token_ids is None
                else tuple(token_ids(stop_token_ids, self.config.vocab_size).ravel().tolist())
            )
        longest = max(map(len, prompts.rows))
        if max_length is None:
            max_length = longest + NEW_TOKENS if self.sequence_length is None else self.sequence_length
        if longest > max_length:
            raise ValueError(
                f"The longest prompt has {longest} tokens; `max_length`, prompt and answer together, is {max_length}."
            )
        return prompts, ends, sampling, int(max_length)

    def _program(self, kind, plan=None, ends=()):
        """A compiled function, made once for each kind of request."""
        key = (kind, plan, ends)
        if key not in self._programs:
            self._programs[key] = compiled(*getattr(self, f"_{kind}_program")(plan, ends))
        return self._programs[key]

    def _generate_program(self, plan, ends):
        network = self.backbone

        def run(ids, length, limit, wkv, shift, seeds, values):
            state = network.unpack(wkv, shift)
            carry = loop.generate(network, plan, ends, ids, length, limit, state, seeds, values)
            return (carry.ids, carry.position, *network.pack(carry.state))

        return run, network.variables

    def _begin_program(self, plan, ends):
        network = self.backbone

        def run(ids, length, limit, wkv, shift, seeds):
            return loop.begin(network, ids, length, limit, network.unpack(wkv, shift), seeds)

        return run, network.variables

    def _step_program(self, plan, ends):
        network = self.backbone
        return (lambda carry, values: loop.advance(network, plan, ends, carry, values)), network.variables, (0,)

    def _pack_program(self, plan, ends):
        return self.backbone.pack, ()


def check_chunk(chunk_len):
    """A ValueError for what cannot be a number of tokens read at once."""
    if chunk_len < 1:
        raise ValueError(f"`chunk_len` is how many tokens are read at once, at least 1. Received: {chunk_len}.")


def seeds(seed, batch):
    """(B, 2) int32 (seed, tokens generated before): from an int, such an array, or None for new ones."""
    if seed is None:
        first = np.random.default_rng().integers(-(2**31), 2**31, batch)
        return np.stack([first, np.zeros(batch)], axis=1).astype("int32")
    array = np.asarray(seed)
    if array.ndim == 0:
        first = (int(seed) + np.arange(batch, dtype="int64")) & 0xFFFFFFFF
        return np.stack([first.astype("uint32").view("int32"), np.zeros(batch, "int32")], axis=1)
    if array.shape != (batch, 2):
        raise ValueError(f"`seed` is an int or an array ({batch}, 2). Received shape {array.shape}.")
    return array.astype("int32")


def _buffer(length):
    return -(-length // BUFFER) * BUFFER


def _functional(backbone, sequence_length, with_lm, input_state, output_state, packed):
    """The Keras model around a backbone, see DESIGN of the inputs in `build_transformer_model`."""
    inputs = [keras.Input((sequence_length,), dtype="int32", name="Input-Token")]
    wkv, shift = RWKVState.shapes(backbone.config)
    wkv_dtype, dtype = backbone.state_dtypes
    named = {}
    if input_state:
        named["wkv"] = keras.Input(wkv, dtype=wkv_dtype, name="Stack-States")
        named["shift"] = keras.Input(shift, dtype=dtype, name="Stack-Last-X")
    if packed:
        named["reset"] = keras.Input((sequence_length,), dtype="int32", name="Reset")
    output, *state = backbone(inputs[0], **named)
    if with_lm == "softmax":
        output = keras.layers.Activation("softmax", dtype=wkv_dtype, name="probabilities")(output)
    return keras.Model(
        [*inputs, *named.values()], [output, *state] if output_state else output, name=backbone.config.model
    )
