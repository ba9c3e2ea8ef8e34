"""What the user holds: a model with its tokenizer, its way of sampling, and everything one does with them."""

import dataclasses

import numpy as np

from bert4keras_rwkv.generation.cache_model import cache_model
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.models import lora, state_tuning
from bert4keras_rwkv.models.build import Numbers, backbone_and_tokenizer, functional_model
from bert4keras_rwkv.models.loss_model import training_model
from bert4keras_rwkv.models.plan import plan_of
from bert4keras_rwkv.models.quantization import Quantization, asked, refuse_packed, weights_of
from bert4keras_rwkv.models.reader import Reader
from bert4keras_rwkv.models.request import Request, end_ids, limits, seeds, texts_that_stop, whole_number, with_text
from bert4keras_rwkv.models.segment_model import segment_trainer
from bert4keras_rwkv.models.stream import Stream
from bert4keras_rwkv.models.text_training import Texts, is_dataset, of_text, text_loss
from bert4keras_rwkv.models.writer import Writer, Writing
from bert4keras_rwkv.ops.kernels.choose import chosen
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.strategy import Strategy
from bert4keras_rwkv.tokenizers.prompts import Prompts, need_tokenizer, strings_in, token_ids
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.versions import version_named
from bert4keras_rwkv.weights.adapters import ALPHA, read_adapter
from bert4keras_rwkv.weights.checkpoint import Origin, named
from bert4keras_rwkv.weights.folder import TEMPLATE
from bert4keras_rwkv.weights.formats.keras_h5 import write_preset
from bert4keras_rwkv.weights.merging import merge_into
from bert4keras_rwkv.weights.states import read_state, write_state

NOWHERE = Origin()
LANGUAGE_MODELS = ("linear", "softmax", True, False)


class RWKV:
    """A language model. Made by `build_transformer_model` or `RWKV.from_preset`.

    model: a functional Keras model for `fit`, `predict`, `summary`, `save_weights`, `export`; it shares its weights
    with everything else here. config: RWKVConfig. backbone: the layer that holds the weights. tokenizer:
    a `tokenizers.Tokenizer` or None; it may be set. sampling: how `generate` draws when it is not told.
    origin: an `Origin`, what the weights are called, and the form of conversations that their file names.
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
        prefix="",
        name=None,
        origin=NOWHERE,
    ):
        self.backbone, self.config = backbone, backbone.config
        self.tokenizer = tokenizer
        self.sampling = Sampling(top_p=0.85) if sampling is None else sampling
        self.sequence_length, self.with_lm, self.packed = sequence_length, with_lm, packed
        self.origin = origin
        self._made_with = {"input_state": input_state, "output_state": output_state, "prefix": prefix, "name": name}
        self._model = functional_model(backbone, sequence_length, with_lm, packed=packed, **self._made_with)
        self.forget_programs()
        for user in (self, self._model):
            backbone.used_by(user)

    def __reduce__(self):
        """A copy (`copy.deepcopy`, `pickle`) has weights of its own, what was tuned too; its model is not compiled."""
        own = {"sequence_length": self.sequence_length, "with_lm": self.with_lm, "packed": self.packed}
        own["origin"] = self.origin
        return _copied, (type(self), self.backbone, self.tokenizer, self.sampling, {**own, **self._made_with})

    def __repr__(self):
        c = self.config
        return f"<RWKV {c.model}, {c.num_hidden_layers} layers of {c.hidden_size}, vocabulary {c.vocab_size}>"

    @property
    def model(self):
        """The Keras model; a ValueError if the network does not lie on one device. Keras' `predict` would find that out
        when it has taken the variables' values away.
        """
        self.backbone.check_one_device()
        return self._model

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
        max_new_tokens=None,
        stop_texts=(),
    ):
        """Write on from one or several prompts.

        inputs: str, list of str, ids, or a ragged list of ids; the answer has the same form. An array or a `tf.data`
        set of strings is a list of them. Line ends of a str become line feeds, as the models have read them.
        max_length: tokens of prompt and answer together; max_new_tokens: those of the answer; neither: sequence_length,
        or 256 new tokens after the longest prompt. stop_token_ids: an id, several, None, or 'auto', the tokenizer's end
        token. stop_texts: a str or several; the answer ends before the first of them, wherever in a token that is, and
        ids hold the tokens that are whole before it. strip_prompt: leave the prompt out of the answer. sampling: a
        `Sampling`, or 'greedy', 'top_k', 'top_p', 'random'; None: what the model was built with. seed: an int makes the
        answer repeatable, row i draws with (seed + i, 0); an (B, 2) array continues earlier draws; None: new noise.
        state: RWKVState to start from. return_state: also return the state that has consumed all but each row's last
        token. A stop token ends a row; ids contain it, text does not.

        Ids without a text are never drawn where text is wanted, for str or with stop_texts. Logits that are not finite
        are a ValueError.
        """
        if is_dataset(inputs):
            inputs = [text for batch in inputs.as_numpy_iterator() for text in strings_in(np.atleast_1d(batch))]
        prompts, request = self._request(
            inputs, max_length, max_new_tokens, stop_token_ids, stop_texts, sampling, seed, state
        )
        if request.stops:
            writing = Writing(self._write(), request)
            shown = writing.whole()
            rows, state = writing.tokens, writing.state if return_state else None
        else:
            rows, state = self._write().write(request)
            shown = map(self._shown, rows, [request.ends] * len(rows)) if prompts.is_text else None
        answers = prompts.answers(rows, shown, strip_prompt)
        return (answers, state) if return_state else answers

    def stream(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        sampling=None,
        seed=None,
        state=None,
        return_state=False,
        max_new_tokens=None,
        stop_texts=(),
        as_text=False,
    ):
        """`generate` for one prompt, piece by piece: yields text as it is written, without the prompt (ids for ids).

        A piece is the text of whole tokens: what belongs to an unfinished character, or may become a stop text, is held
        back. as_text: text also for a prompt of ids. The `Stream` that is returned may be left at any moment; its
        `state` is that of what was yielded. With return_state the last thing yielded is the RWKVState.
        """
        prompts, request = self._request(
            inputs, max_length, max_new_tokens, stop_token_ids, stop_texts, sampling, seed, state, as_text
        )
        if not prompts.single:
            raise ValueError(f"`stream` takes one prompt. Received: {len(prompts.rows)}. Use `generate` for several.")
        return Stream(self._write(), request, prompts.is_text or as_text, return_state)

    def sample(self, logits, sampling=None, seed=None, prompt=None, answer=None):
        """The next id, for a loop of one's own: logits (V,) -> int, (B, V) -> NumPy int32 (B,).

        sampling: as for `generate`. prompt, answer: the ids before, of each row if there are rows; penalties look at
        them, and the number of tokens in the answer says how many draws were made: with them a seed draws what
        `generate` draws. seed: as for `generate`; None: new noise.
        """
        logits = ops.convert_to_tensor(logits)
        single, size = logits.ndim == 1, self.config.vocab_size
        if logits.ndim not in (1, 2) or logits.shape[-1] != size or 0 in logits.shape:
            raise ValueError(f"`logits` is ({size},) or (B, {size}). Received shape {tuple(logits.shape)}.")
        logits = logits[None] if single else logits
        batch = logits.shape[0]
        sampling = Sampling.of(sampling, self.sampling)
        sampling.check(size, 0)
        if answer is None and (sampling.plan().penalty or sampling.plan().frequency):
            raise ValueError("Penalties look at the text so far: give `prompt` and `answer`, the ids before.")
        rows = [[[]] * batch if x is None else [x] if single else list(x) for x in (prompt, answer)]
        prompts, answers = ([token_ids(row, size).reshape(-1) for row in part] for part in rows)
        if len(prompts) != batch or len(answers) != batch:
            raise ValueError(f"`prompt` and `answer` have the ids of each of {batch} rows of `logits`.")
        seed = seeds(seed, batch) if np.ndim(seed) else seeds(seed, batch) + [[0, len(row)] for row in answers]
        drawn = self._write().draw(logits, prompts, answers, seed.astype("int32"), sampling)
        return int(drawn[0]) if single else drawn

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
        (B, 2) int32, (seed, tokens generated before). A state has read all but the last token of its text, with which
        the next prompt begins.

        Any id of the head may be written, those without a text too: for
        text build with mask_output=tokenizer.without_text(vocab_size). A row whose logits are not finite ends there.
        """
        self.backbone.check_one_device()
        lengths = [input_lengths] if isinstance(input_lengths, int) else list(input_lengths)
        if len(lengths) != 1:
            raise ValueError(f"`input_lengths` has one length, that of the ids. Received: {input_lengths!r}.")
        s = self.sampling
        options = {field.name: getattr(s, field.name) for field in dataclasses.fields(s)}
        del options["top_k"], options["top_p"]
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

    def compile(self, optimizer="auto", loss="auto", *, sampler=None, **options):
        """What Keras Hub's models are told: how to train, for `fit`, and how to write, for `generate`.

        optimizer: Keras', 'auto' is Adam(2e-5). loss: 'auto', or a `layers.NextTokenLoss`. sampler: a `Sampling` or
        'greedy', 'top_k', 'top_p', 'random'; None leaves what the model was built with. options: of
        `keras.Model.compile`.
        """
        self.sampling = Sampling.of(sampler, self.sampling)
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = keras.optimizers.Adam(2e-5)
        loss = text_loss() if isinstance(loss, str) and loss == "auto" else loss
        self._trainer = self.training_model(loss)
        self._trainer.compile(optimizer, **options)

    def fit(self, x, batch_size=None, **options):
        """Train on texts with what `compile` was told. Returns Keras' `History`.

        x: a list or NumPy array of str, or a `tf.data` set of str or of batches of str. Each text is a row, closed by
        the end token, and as long as the longest, or sequence_length; longer ones are cut. A `tf.data` set has rows of
        sequence_length, 1,024 if the model has none. options: of `keras.Model.fit`. Anything else that
        `training_model` takes goes to it unchanged. docs/training.md shows what packs texts into rows without padding.
        """
        if self._trainer is None:
            self.compile()
        texts = Texts(self.tokenizer, self.sequence_length, self.packed)
        strings = None if is_dataset(x) else strings_in([x] if isinstance(x, str) else x)
        if strings or (is_dataset(x) and of_text(x)):
            need_tokenizer(self.tokenizer)
            if not self._trainer.get_layer("token_loss").loss.answer_mask:
                raise ValueError("The loss that `compile` got has no answer mask, so it takes ids. Use loss='auto'.")
            x = texts.rows(strings) if strings else texts.dataset(x, batch_size)
        options = {"shuffle": False, **options} if is_dataset(x) else {"batch_size": batch_size, **options}
        return self._trainer.fit(x, **options)

    def summary(self, *args, **options):
        """That of `RWKV.model`."""
        self._model.summary(*args, **options)

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
        state_tuning.enable_state_tuning(self.backbone, time_shift_tuning)

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
        self.backbone.settle()

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
        self.backbone.settle()

    def merge_adapter(self, scale=1.0):
        """Add the LoRA, times `scale`, to the weights and start it anew at zero, so that another can be stacked."""
        lora.merge_adapter(self.backbone, scale)
        self.backbone.settle()

    def tuned_state(self):
        """The tuned initial state: RWKVState of one row, to save, convert, average, or pass as `state`."""
        return state_tuning.tuned_state(self.backbone)

    def set_tuned_state(self, state):
        """Let every text begin in `state`, an RWKVState of one row; `enable_state_tuning` must have been called."""
        state_tuning.set_tuned_state(self.backbone, state)

    def save_to_preset(self, folder):
        """Write config.json, model.weights.h5 and the vocabulary to a folder, whole or not at all.

        A quantised model stays so: `from_preset` gives the same numbers in as few bytes. A LoRA on its quantised
        matrices is a ValueError: `save_adapter` has it.
        """
        weights = self.weights()
        if self.origin.template is not None:
            weights.metadata[TEMPLATE] = self.origin.template
        write_preset(folder, weights, self.config, tokenizer=self.tokenizer)

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
        state = dataclasses.replace(self.state_for(state, state.batch), model=self.config.model)
        write_state(path, state, layout, drop_shift)

    def merge_lora(self, path, alpha=ALPHA, base=None):
        """Merge a LoRA, PiSSA, DiSHA, Bone or Bat of RWKV-PEFT, or a LoRA of web-rwkv, into the weights.

        alpha: what a LoRA was trained with; files do not say it. base: for a PiSSA, the file of its initial factors.
        All or nothing; each weight is computed in float32 and rounded once to its dtype. There is no way back: keep the
        model's file. Raises ValueError for a quantised model, whose matrices would be rounded once more.
        """
        refuse_packed(self.backbone)
        first = None if base is None else read_adapter(base)
        merge_into(self.config.rules(), self.backbone.variable_at, read_adapter(path), alpha, first)
        self.backbone.settle()

    def weights(self):
        """The weights as lazy `weights.Tensors` under official names, as `write_pth` and others take them.

        What is quantised is rounded: they are the numbers that the model computes with. A LoRA on quantised matrices,
        and what Keras quantised, are a ValueError.
        """
        return weights_of(self.backbone)

    def quantize(self, quantization, calibrate=None, compensate=False):
        """Store the projections and the head in fewer bytes from now on.

        quantization: 'bfloat16', 'int8', 'int4' or a `Quantization`. calibrate: texts, a str or a list of them, or ids:
        the first 16384 tokens are read, and errors weigh as much as what they are multiplied by there. Of 16 bits it
        changes nothing. compensate: columns of a matrix also make up for each other's errors, which takes longer.
        There is no way back, and a LoRA comes after it. All or nothing: numbers that cannot be stored so, or a model
        that is quantised or has a LoRA, are a ValueError, and so is `compensate` without texts.
        """
        if quantization is None:
            raise ValueError("`quantization` is 'bfloat16', 'int8', 'int4' or a `Quantization`. Received: None.")
        quantization = Quantization.of(quantization)
        if calibrate is None and compensate:
            raise ValueError("`compensate` needs to know what the matrices multiply. Give texts: `calibrate`.")
        if calibrate is None:
            quantization.pack(self.backbone)
        else:
            rows = Prompts(calibrate, self.tokenizer, self.config.vocab_size).rows
            end = None if self.tokenizer is None else self.tokenizer.end_token
            between = np.array([] if end is None else [end], "int32")
            ids = np.concatenate([part for row in rows for part in (between, row)])
            quantization.pack_calibrated(self.backbone, ids, compensate)
        self.backbone.settle()

    def forget_programs(self):
        """Compiled programs know the weights that there were."""
        self._reader = self._writer = self._trainer = None

    @classmethod
    def from_preset(cls, preset, **options):
        """The model in a preset folder, in a weight file, or shipped with the package under a name ('finch-jargon').

        options: as for `build_transformer_model`.
        """
        return build_transformer_model(checkpoint_path=named(preset), **options)

    @staticmethod
    def plan(preset, strategy):
        """What a strategy would mean for a model: a `Plan`, whose `str` is a table. The weights are not loaded.

        preset: as for `from_preset`. strategy: a string or a `Strategy`, as for `build_transformer_model`.
        """
        return plan_of(preset, strategy)

    def _read(self):
        if self._reader is None:
            self._reader = Reader(self.backbone)
        return self._reader

    def _write(self):
        if self._writer is None:
            self._writer = Writer(self.backbone)
        return self._writer

    def _inputs(self, ids, state, present):
        """What `forward` and `prefill` take, checked, as NumPy ids and mask and an RWKVState of the same batch."""
        ids = token_ids(ids, self.config.vocab_size)
        if ids.ndim != 2 or 0 in ids.shape:
            raise ValueError(f"`ids` is (B, T), with T at least 1. Received shape {ids.shape}.")
        if present is not None:
            present = np.asarray(present).astype(bool)
            if present.shape != ids.shape:
                raise ValueError(f"`present` has the shape of `ids`, {ids.shape}. Received: {present.shape}.")
        return ids, self.state_for(state, len(ids)), present

    def state_for(self, state, batch):
        """`state` as an RWKVState of `batch` rows: one of a single row is repeated, None is where every text begins.

        Raises ValueError for the state of another model or of another number of rows.
        """
        dtype = self.backbone.compute_dtype
        if state is None:
            if not self.backbone.start_states:
                return RWKVState.zeros(self.config, batch, dtype)
            state = self.tuned_state()
        if not isinstance(state, RWKVState):
            raise TypeError(f"`state` is an RWKVState, or None for where texts begin. Received: {shown(state)}.")
        state.check(self.config)
        rows = state.batch, int(state.shift.shape[0])
        if rows == (batch, batch):
            return state
        if not set(rows) <= {1, batch}:
            raise ValueError(
                f"A state for {batch} rows has as many, or one for all. Received: wkv and shift of {rows}."
            )
        wkv, shift = (ops.broadcast_to(x, (batch, *x.shape[1:])) for x in (state.wkv, state.shift))
        return RWKVState(wkv, shift, state.model)

    def _request(
        self, inputs, max_length, max_new_tokens, stop_token_ids, stop_texts, sampling, seed, state, as_text=False
    ):
        """What `generate` and `stream` take, checked: `Prompts` and a `Request`."""
        vocab_size = self.config.vocab_size
        prompts, stops = Prompts(inputs, self.tokenizer, vocab_size), texts_that_stop(stop_texts)
        sampling, tokenizer = Sampling.of(sampling, self.sampling), None
        if prompts.is_text or as_text or stops:
            tokenizer = need_tokenizer(self.tokenizer)
            sampling = with_text(sampling, tokenizer, vocab_size)
        sampling.check(vocab_size, 0)
        ends = end_ids(stop_token_ids, self.tokenizer, vocab_size)
        most = limits([len(row) for row in prompts.rows], max_length, max_new_tokens, self.sequence_length)
        batch = len(prompts.rows)
        fields = self.state_for(state, batch), seeds(seed, batch), sampling, ends, tokenizer, stops
        return prompts, Request.of(prompts.rows, most, *fields)

    def _shown(self, ids, ends):
        """The text of an answer, without the id that ended it."""
        return self.tokenizer.decode(ids[:-1] if ids and ids[-1] in ends else ids)


def _copied(kind, backbone, tokenizer, sampling, options):
    """What `RWKV.__reduce__` makes a copy with."""
    return kind(backbone, tokenizer, sampling, **options)


def check_chunk(chunk_len):
    """A ValueError for what cannot be a number of tokens read at once."""
    if chunk_len < 1:
        raise ValueError(f"`chunk_len` is how many tokens are read at once, at least 1. Received: {chunk_len}.")


def build_transformer_model(
    config_path=None,
    checkpoint_path=None,
    model=None,
    keras_weights_path=None,
    return_keras_model=False,
    sequence_length=None,
    with_lm="linear",
    dtype=None,
    tokenizer=None,
    pad_token_id=0,
    group_norm_epsilon=None,
    rescale_layer=None,
    kernel="auto",
    input_state=False,
    output_state=False,
    packed=False,
    remat=False,
    keep_tokens=None,
    compound_tokens=None,
    mask_output=None,
    penalty=1.0,
    penalty_window=None,
    max_penalty_range=None,
    temperature=1.0,
    prefix="",
    name=None,
    quantization=None,
    strategy=None,
    **config_keys,
):
    """Build a model, with the weights of a file or as its authors start training.

    config_path: a JSON file with bert4keras or Hugging Face keys. checkpoint_path: a weight file or preset folder of
    any known format; version and sizes are read from it. keras_weights_path: the same, in bert4keras's name. Without
    either the weights are random. model: 'rwkv6'; needed only where nothing else says it. config_keys: keys of
    RWKVConfig, over what the files say.

    return_keras_model: return the Keras model instead of the `RWKV` around it. sequence_length: fixed T of the Keras
    model, None for any. with_lm: what it gives: 'linear' logits, 'softmax' (or True) probabilities, False hidden
    states. input_state, output_state: it takes and gives `Stack-States` and `Stack-Last-X` too. packed: it takes
    `Reset` (B, T), 1 where a document begins, and masks nothing. pad_token_id: the id it masks, None for none.

    dtype: a dtype or Keras policy. None: `keras.config.floatx()` where it was changed; else on a CPU float32, on an
    accelerator the file's own. tokenizer: one of `tokenizers`, or the path of a vocabulary; None looks beside the
    weights. kernel: 'auto', 'native', 'ops' or 'loop' (docs/kernels.md). remat: recompute blocks in the backward pass.
    group_norm_epsilon: 64e-5 unless a config says otherwise. rescale_layer: halve the residual stream after every so
    many blocks, so that float16 does not overflow; logits are what they were; 0 is off; None: 6 for float16, else 0.

    keep_tokens: ids of the file's vocabulary to keep, in their new order. compound_tokens: rows to append, each the
    mean of those of a list of ids, or the weighted mean of (ids, weights); the ids are the file's. The tokenizer, the
    file's too, is renumbered with them; where new rows have texts, set `RWKV.tokenizer = old.remapped(keep, texts)`.
    mask_output, penalty, penalty_window, max_penalty_range, temperature: how `generate` and `build_cache_model`
    sample.

    quantization: 'bfloat16', 'int8', 'int4' or a `Quantization`: the projections and the head are stored so, each
    matrix as it is read (`ops.matmul`). 'keep': as the file has them, blocks of a GGUF file and bfloat16 too; what has
    no form here gets the nearest one, and how near that is the log says (docs/formats.md). 'auto': matrices that are
    bfloat16 stay so where a native kernel multiplies them and the dtype is float32, which is faster and loses nothing;
    else as None. None: in `dtype`, but a preset of a quantised model as it is. strategy: instead of both, for each
    block where it is computed, in which dtype, and how it is stored: a string as of the `rwkv` package, 'cuda fp16i8
    *20 -> cpu fp32', 'auto', or a `Strategy` (docs/strategies.md).

    prefix: what the names of the inputs and layers of the Keras model begin with, so that two models fit into one.
    name: its own name, None for the version.
    """
    if with_lm not in LANGUAGE_MODELS:
        raise ValueError(f"`with_lm` is 'linear', 'softmax' (or True) or False. Received: with_lm={with_lm!r}.")
    with_lm = {True: "softmax", False: False}.get(with_lm, with_lm)
    if checkpoint_path is not None and keras_weights_path is not None:
        raise ValueError("Give `checkpoint_path` or `keras_weights_path`, not both: each names a weight file.")
    if sequence_length is not None:
        sequence_length = whole_number("sequence_length", sequence_length, 1)
    if model is not None:
        version_named(model)
    chosen(kernel)  # where it cannot be: a layer would say so amid what Keras says of the layer
    sampling = Sampling(
        temperature=temperature,
        top_p=0.85,
        penalty=penalty,
        penalty_window=penalty_window,
        max_penalty_range=max_penalty_range,
        mask_output=() if mask_output is None else mask_output,
    )
    path = keras_weights_path if checkpoint_path is None else checkpoint_path
    if path is None and (keep_tokens is not None or compound_tokens):
        raise ValueError(
            "`keep_tokens` and `compound_tokens` choose rows of a file's vocabulary. Give `checkpoint_path` too, or "
            "`vocab_size` for random weights."
        )
    backbone, tokenizer, origin = backbone_and_tokenizer(
        path,
        config_path,
        {**config_keys, "model": model, "group_norm_epsilon": group_norm_epsilon},
        tokenizer,
        keep_tokens,
        compound_tokens,
        Numbers(dtype, asked(quantization), None if strategy is None else Strategy.of(strategy)),
        kernel=kernel,
        pad_token_id=None if packed else pad_token_id,
        head=with_lm is not False,
        remat=remat,
        rescale_layer=rescale_layer,
        name=f"{prefix}backbone",
    )
    rwkv = RWKV(
        backbone, tokenizer, sampling, sequence_length, with_lm, input_state, output_state, packed, prefix, name, origin
    )
    return rwkv.model if return_keras_model else rwkv
