"""Losses as layers, put behind a model: what they compute is added to the loss that `fit` makes smaller."""

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.cross_entropy import chunked_cross_entropy, known_labels


class Loss(keras.layers.Layer):
    """A layer that adds a loss, as in bert4keras.

    A subclass says `compute_loss(inputs, mask)`, a scalar; inputs: what the layer is called with, a list of tensors,
    mask: their Keras masks. output_axis: which of the inputs the layer returns (an int, or a list of ints), None for
    all.
    """

    def __init__(self, output_axis=None, **kwargs):
        super().__init__(**kwargs)
        self.output_axis = output_axis

    def compute_loss(self, inputs, mask=None):
        raise NotImplementedError("A subclass of Loss says `compute_loss(inputs, mask)`, which returns a scalar.")

    def call(self, inputs, mask=None):
        self.add_loss(self.compute_loss(inputs, mask))
        return self._chosen(inputs)

    def compute_output_shape(self, input_shape):
        return self._chosen(input_shape)

    def compute_output_spec(self, inputs, mask=None):
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), self._chosen(inputs))

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else self._chosen(mask)

    def get_config(self):
        return {**super().get_config(), "output_axis": self.output_axis}

    def _chosen(self, inputs):
        axis = self.output_axis
        if axis is None:
            return inputs
        return [inputs[i] for i in axis] if isinstance(axis, list | tuple) else inputs[axis]


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class NextTokenLoss(Loss):
    """Mean cross-entropy of each real token given those before it, in nats.

    Behind a model it is called with [ids (B, T) int, logits (B, T, V)], with answer_mask [ids, answer, logits]; in
    `RWKV.training_model` it takes pieces of chunk_len tokens. answer_mask: a token counts where `Answer-Mask` (B, T)
    is not 0. pad_token_id: the id that is no token, None for none.
    A token counts if it and the one before it are real, and it does not begin a document. Where none counts the loss
    is 0; where one counts that is not in the vocabulary, it is NaN.
    """

    def __init__(self, chunk_len=128, answer_mask=False, pad_token_id=0, output_axis=-1, **kwargs):
        super().__init__(output_axis, **{"dtype": "float32", **kwargs})
        if isinstance(chunk_len, bool) or not isinstance(chunk_len, int) or chunk_len < 1:
            raise ValueError(f"`chunk_len` is how many tokens have logits at once. Received: chunk_len={chunk_len!r}.")
        self.chunk_len, self.answer_mask, self.pad_token_id = chunk_len, answer_mask, pad_token_id

    def compute_loss(self, inputs, mask=None):
        ids, *answer, logits = inputs
        labels, weights = next_tokens(ids, self.pad_token_id, *answer)
        known, labels = known_labels(labels, logits.shape[-1])
        cost = ops.sparse_categorical_crossentropy(labels, ops.cast(logits, "float32"), from_logits=True)
        cost = ops.where(known, cost, float("nan"))
        return mean(ops.sum(ops.where(weights > 0, weights * cost, 0.0)), weights)

    def of_hidden(self, hidden, kernel, labels, weights, kernel_trains=True, count_hits=False):
        """The loss from normed hidden states (B, T, D) and the head's kernel (D, V), without keeping logits.

        labels, weights: of `next_tokens`. count_hits: a pair, the loss and how many of the tokens that count are the
        likeliest.
        """
        total = chunked_cross_entropy(hidden, kernel, labels, weights, self.chunk_len, kernel_trains, count_hits)
        if count_hits:
            return mean(total[0], weights), ops.stop_gradient(total[1])
        return mean(total, weights)

    def get_config(self):
        own = {"chunk_len": self.chunk_len, "answer_mask": self.answer_mask, "pad_token_id": self.pad_token_id}
        return {**super().get_config(), **own}


def next_tokens(ids, pad_token_id, answer=None, reset=None, sample_weight=None):
    """What is to be predicted at each position, (B, T) int32, and what it counts, (B, T) float32, 1 or 0 times its
    sample_weight (see `each_token`).
    """
    weights = token_weights(ids, pad_token_id, answer, reset)
    if sample_weight is not None:
        weights = weights * _next(each_token(sample_weight, ids))
    return _following(ids), weights


def each_token(sample_weight, ids):
    """Keras' sample_weight of a batch, (B,), (B, 1) or (B, T), as float32 (B, T): the weight of each token of ids."""
    weights = ops.reshape(ops.cast(sample_weight, "float32"), (ops.shape(ids)[0], -1))
    if weights.shape[1] not in (1, None, ids.shape[1]):
        raise ValueError(
            f"`sample_weight` is a weight for each text, (B,), or for each token, (B, {ids.shape[1]}). Received: "
            f"{weights.shape[1]} for each text."
        )
    return ops.broadcast_to(weights, ops.shape(ids))


def token_weights(ids, pad_token_id, answer=None, reset=None):
    """(B, T) float32: 1 where the next token is to be predicted. The last position predicts nothing."""
    weights = ops.ones_like(ids, dtype="float32")
    if pad_token_id is not None:
        real = ops.cast(ops.not_equal(ids, pad_token_id), "float32")
        weights = real * _next(real)
    if answer is not None:
        weights = weights * _next(ops.cast(ops.not_equal(answer, 0), "float32"))
    if reset is not None:
        weights = weights * (1.0 - _next(ops.cast(ops.not_equal(reset, 0), "float32")))
    return weights * _next(ops.ones_like(weights))


def mean(total, weights):
    """The sum over the sum of weights; 0 where nothing counts."""
    count = ops.sum(weights)
    return total / ops.cast(ops.where(count > 0, count, 1.0), total.dtype)


def _next(x):
    """(B, T): at each position what stands at the next one, 0 at the last."""
    return ops.pad(x[:, 1:], ((0, 0), (0, 1)))


def _following(ids):
    """The next token's id at each position."""
    return _next(ops.cast(ids, "int32"))
