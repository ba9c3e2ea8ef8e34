"""A prompt as a state: the state in which texts begin is trained until the model without the prompt predicts as the
model with it.

The state behind a prompt says all of it already, in the matrices of the recurrence and in the last inputs of every
layer. Training is for what that state is not: matrices alone, since files of other programs hold no last inputs; one
state that stands for several prompts. Distillation: Hinton et al., arXiv 1503.02531; of a prompt: arXiv 2112.00861.
"""

import dataclasses

import numpy as np

from bert4keras_rwkv.data.batches import ANSWER, IDS, BucketedBatches
from bert4keras_rwkv.data.documents import Document, document
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.losses import mean
from bert4keras_rwkv.layers.projection import kernel_matrix
from bert4keras_rwkv.models.lora import adapted
from bert4keras_rwkv.ops.cross_entropy import chunked_divergence
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.tokenizers.prompts import need_tokenizer, token_ids
from bert4keras_rwkv.training.fitting import fit_batches, mean_loss
from bert4keras_rwkv.training.learning_rates import PROMPT as LEARNING_RATE

PROMPT = "Prompt"  # an input, (B, T): behind which prompt a token stands, counted from 1; 0 where there is none
STARTS = ("zero", "prompt")


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What came of it: mean divergence from the teacher, in nats a token, of texts held out, and while training."""

    before: float
    after: float
    losses: list


def distil_prompt(
    rwkv,
    prompts,
    texts=None,
    start="zero",
    time_shift_tuning=False,
    held_out=None,
    steps=200,
    batch_size=8,
    length=64,
    learning_rate=LEARNING_RATE,
    samples=64,
    seed=0,
    checkpoint=None,
    verbose="auto",
    callbacks=(),
):
    """Tune the state of a model so that without a prompt it predicts as behind the prompt. Returns a `Distilled`.

    prompts: str, ids, the RWKVState behind a prompt, or a list of these: then one state stands for all, and predicts on
    average as behind each. texts: what may follow a prompt, str or ids; each is used behind every prompt. None:
    `samples` texts of `length` tokens that the model writes behind the prompts. held_out: texts to measure with; None:
    an eighth of the texts, but at least one. length: texts are cut into pieces of so many tokens, each of which stands
    behind the prompt. start: 'zero', or 'prompt' for the state behind the prompt, of several prompts their average.
    time_shift_tuning: whether the last inputs are tuned too, if state tuning is not on already. steps: how many batches
    are trained on, 0 to measure only. learning_rate and the others: see `fit_batches`. seed: of the texts written and
    of the order of batches.

    Afterwards `rwkv.tuned_state()` is the state. It has to be given a text's first token, as a prompt's state has.

    Raises:
        ValueError: an empty prompt, too few texts, or a LoRA, which would train with the state.
    """
    if start not in STARTS:
        raise ValueError(f"`start` is one of {', '.join(map(repr, STARTS))}. Received: start={start!r}.")
    rwkv.backbone.check_one_device()
    if adapted(rwkv.backbone):
        raise ValueError("LoRA is on, and would be trained with the state. Call `merge_adapter` on a model of its own.")
    readings = _readings(rwkv, prompts)
    train, test = _rows(rwkv, readings, texts, held_out, length, samples, seed)
    states = [state for _, _, state in readings]
    if not rwkv.backbone.start_states:
        rwkv.enable_state_tuning(time_shift_tuning)
    if start == "prompt":
        rwkv.set_tuned_state(_without_shift(RWKVState.average(states), rwkv.backbone))
    batches = _batches(train, batch_size, length, seed)
    held = _batches(test, min(batch_size, len(test)), length, None)
    model = distilling_model(rwkv.backbone, RWKVState.stack(states).numpy())
    before = mean_loss(model, held, _tokens)
    losses = fit_batches(model, batches, steps, learning_rate, checkpoint, verbose, callbacks) if steps else []
    return Distilled(before, mean_loss(model, held, _tokens), losses)


def distilling_model(backbone, states):
    """A Keras model `Input-Token` (B, T), `Prompt` (B, T) -> divergence of the tuned backbone from the one that begins
    in `states`, an RWKVState with a row for each prompt; a scalar, to `compile` and `fit`.
    """
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in (IDS, PROMPT)]
    layer = PromptLoss(backbone, states, name="prompt_loss")
    return keras.Model(inputs, layer(*inputs), name=f"{backbone.config.model}_distilling")


class PromptLoss(keras.layers.Layer):
    """The divergence, in nats a token, of a backbone's predictions from those it makes behind prompts.

    states: RWKVState behind each prompt. chunk_len: as in `NextTokenLoss`. The weights are the backbone's.
    """

    def __init__(self, backbone, states, chunk_len=128, **kwargs):
        super().__init__(**{"dtype": backbone.dtype_policy, **kwargs})
        self.backbone, self.chunk_len = backbone, chunk_len
        self.wkv, self.shift = (self._kept(name, getattr(states, name)) for name in ("wkv", "shift"))
        self.built = True

    def call(self, ids, prompt):
        backbone, present = self.backbone, ops.greater(prompt, 0)
        which = ops.maximum(ops.max(prompt, axis=1) - 1, 0)
        teacher = backbone.unpack(*(ops.take(x, which, axis=0) for x in (self.wkv, self.shift)))
        student = backbone.start(ops.shape(ids)[0])
        wanted, hidden = (backbone.ln_out(backbone.read(ids, state, present)[0]) for state in (teacher, student))
        weights = ops.cast(present, "float32")
        total = chunked_divergence(
            hidden, ops.stop_gradient(wanted), kernel_matrix(backbone.head), weights, self.chunk_len
        )
        loss = mean(total, weights)
        self.add_loss(loss)
        return loss

    def compute_output_spec(self, ids, prompt):
        return keras.KerasTensor((), self.backbone.state_dtypes[0])

    def _kept(self, name, array):
        value = keras.initializers.Constant(np.asarray(array, "float32"))
        return self.add_weight(
            shape=array.shape, initializer=value, trainable=False, dtype="float32", autocast=False, name=name
        )


class PromptBatches(BucketedBatches):
    """Padded batches of (ids, number of the prompt) with the input `Prompt`."""

    def __init__(self, rows, length, batch_size, seed=0):
        documents = [Document(ids, np.full(len(ids), number + 1, np.int32)) for ids, number in rows]
        super().__init__(documents, length, batch_size, seed, side="right", answer_mask=True)

    def batch(self, number):
        batch = super().batch(number)
        return {IDS: batch[IDS], PROMPT: batch[ANSWER]}


def _batches(rows, batch_size, length, seed):
    return PromptBatches(rows, min(length, max(len(ids) for ids, _ in rows)), batch_size, seed)


def _tokens(batch):
    return int((batch[PROMPT] > 0).sum())


def _readings(rwkv, prompts):
    """Of each prompt its last id, the state before that, and the state behind it; of a state None, None, and it."""
    one = isinstance(prompts, str | RWKVState | np.ndarray) or (prompts and isinstance(prompts[0], int | np.integer))
    found = [_reading(rwkv, prompt) for prompt in ([prompts] if one else prompts)]
    if not found:
        raise ValueError("Expected at least one prompt. Received: none.")
    return found


def _reading(rwkv, prompt):
    if isinstance(prompt, RWKVState):
        return None, None, prompt.numpy()
    ids = need_tokenizer(rwkv.tokenizer).encode(prompt) if isinstance(prompt, str) else prompt
    ids = token_ids(ids, rwkv.config.vocab_size).reshape(1, -1)
    if not ids.size:
        raise ValueError("A prompt has at least one token. Received: an empty one.")
    before = RWKVState.zeros(rwkv.config, 1, rwkv.backbone.compute_dtype)
    if ids.shape[1] > 1:
        before = rwkv.prefill(ids[:, :-1], before)[1]
    return int(ids[0, -1]), before, rwkv.prefill(ids[:, -1:], before)[1].numpy()


def _rows(rwkv, readings, texts, held_out, length, samples, seed):
    """[(ids, number of a prompt)] to train with and to measure with, at most `length` tokens each."""
    if texts is None:
        rows = _written(rwkv, readings, length, samples, seed)
    else:
        rows = _behind_each(rwkv, texts, len(readings), length)
    if held_out is not None:
        return rows, _behind_each(rwkv, held_out, len(readings), length)
    if len(rows) < 2:
        raise ValueError(f"Texts to train with and one to measure with are at least 2. Received: {len(rows)}.")
    apart = max(1, len(rows) // 8)
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order[apart:]], [rows[i] for i in order[:apart]]


def _behind_each(rwkv, texts, prompts, length):
    """Pieces of texts, each behind each prompt."""
    if isinstance(texts, str):
        texts = [texts]
    whole = [
        document(need_tokenizer(rwkv.tokenizer).encode(text) if isinstance(text, str) else text).ids for text in texts
    ]
    pieces = [ids[i : i + length] for ids in whole for i in range(0, len(ids), length)]
    return [(piece, number) for piece in pieces for number in range(prompts)]


def _written(rwkv, readings, length, samples, seed):
    """What the model writes behind its prompts, as it would by itself: no token is likelier than it says."""
    if any(last is None for last, _, _ in readings):
        raise ValueError("Behind a state alone the model cannot write the texts to train with: give `texts`.")
    rows, each = [], -(-samples // len(readings))
    for number, (last, before, _) in enumerate(readings):
        written = rwkv.generate(
            [[last]] * each, length + 1, None, True, Sampling(), seed=seed + number * each, state=before
        )
        rows += [(np.asarray(ids, np.int32), number) for ids in written if len(ids)]
    return rows


def _without_shift(state, backbone):
    """A state that can be set: of a backbone that tunes no last inputs they are left out."""
    if backbone.start_states[0].shift:
        return state
    return dataclasses.replace(state, shift=np.zeros_like(state.shift))
