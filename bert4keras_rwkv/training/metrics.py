"""What a language model is measured by, as Keras metrics: sums over all tokens of an epoch, never means of batch means.

    RWKV.model.compile(optimizer, loss, weighted_metrics=[Perplexity(), TokenAccuracy()])
    RWKV.training_model(accuracy=True).compile(optimizer, metrics=[Perplexity(), TokenAccuracy()])

Behind `RWKV.model` they see labels (B, T) and logits (B, T, V), and `sample_weight` if they stand in
`weighted_metrics`. They never use Keras' mask of the predictions, for JAX loses it in training: say `pad_token_id`, or
give a `sample_weight`. Behind a training model they count what its loss counts.
"""

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.cross_entropy import known_labels


class TokenMetric(keras.metrics.Metric):
    """A quotient of two sums over tokens.

    pad_token_id: a label that is no token, None for none. from_logits: whether predictions are logits; else they are
    probabilities.
    """

    def __init__(self, name, pad_token_id=None, from_logits=True, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.pad_token_id, self.from_logits = pad_token_id, from_logits
        self.above = self.add_variable((), "zeros", name="above")
        self.below = self.add_variable((), "zeros", name="below")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """y_true: labels (B, T). y_pred: (B, T, V), or what a training model gives, (1,) or (2,): mean loss, hits.

        sample_weight: (B, T), (B,), (B, 1), a scalar, or None.
        """
        labels = ops.cast(y_true, "int32")
        weights = ops.ones(ops.shape(labels), self.dtype)
        if sample_weight is not None:
            sample_weight = ops.cast(sample_weight, self.dtype)
            if len(sample_weight.shape) == 1:
                sample_weight = sample_weight[:, None]
            weights = weights * sample_weight
        if self.pad_token_id is not None:
            weights = weights * ops.cast(ops.not_equal(labels, self.pad_token_id), self.dtype)
        above, below = self.sums(labels, y_pred, weights)
        self.above.assign_add(ops.cast(above, self.dtype))
        self.below.assign_add(ops.cast(below, self.dtype))

    def sums(self, labels, y_pred, weights):
        """What a batch adds above and below the line: two scalars."""
        raise NotImplementedError("A subclass of TokenMetric says `sums(labels, y_pred, weights)`.")

    def result(self):
        """0 where nothing was counted."""
        below = ops.convert_to_tensor(self.below)
        return self.above / ops.where(below > 0, below, ops.ones_like(below))

    def nats(self, labels, y_pred, weights):
        """The sum of weight * -log p(label)."""
        if len(y_pred.shape) == 1:
            return ops.cast(y_pred[0], weights.dtype) * ops.sum(weights)
        y_pred = ops.cast(y_pred, weights.dtype)
        known, labels = known_labels(labels, y_pred.shape[-1])
        cost = ops.sparse_categorical_crossentropy(labels, y_pred, from_logits=self.from_logits)
        cost = ops.where(known, cost, float("nan"))
        return ops.sum(ops.where(weights > 0, weights * cost, 0.0))

    def get_config(self):
        return {**super().get_config(), "pad_token_id": self.pad_token_id, "from_logits": self.from_logits}


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Perplexity(TokenMetric):
    """e to the mean cross-entropy (nats) of a token."""

    def __init__(self, name="perplexity", **kwargs):
        super().__init__(name, **kwargs)

    def sums(self, labels, y_pred, weights):
        return self.nats(labels, y_pred, weights), ops.sum(weights)

    def result(self):
        return ops.exp(super().result())


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class BitsPerByte(TokenMetric):
    """Cross-entropy in bits, over the bytes of the text that was predicted: it compares models of any vocabulary.

    sizes: a tokenizer, or for each id of the model the number of its bytes, see `token_sizes`. An end of a document has
    none, but its cost counts.
    """

    def __init__(self, sizes, name="bits_per_byte", **kwargs):
        super().__init__(name, **kwargs)
        self.sizes = token_sizes(sizes) if hasattr(sizes, "token_bytes") else np.asarray(sizes, "int32")

    def sums(self, labels, y_pred, weights):
        sizes = ops.take(ops.convert_to_tensor(self.sizes), ops.clip(labels, 0, len(self.sizes) - 1), axis=0)
        bits = self.nats(labels, y_pred, weights) / np.log(2)
        return bits, ops.sum(weights * ops.cast(sizes, weights.dtype))

    def get_config(self):
        return {**super().get_config(), "sizes": self.sizes.tolist()}


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class TokenAccuracy(TokenMetric):
    """The share of tokens that are the likeliest. A training model counts them if it was made with accuracy=True."""

    def __init__(self, name="token_accuracy", **kwargs):
        super().__init__(name, **kwargs)

    def sums(self, labels, y_pred, weights):
        if len(y_pred.shape) > 1:
            known, labels = known_labels(labels, y_pred.shape[-1])
            own = ops.take_along_axis(y_pred, labels[..., None], axis=-1)[..., 0]
            hits = ops.sum(ops.where(ops.logical_and(known, own >= ops.max(y_pred, axis=-1)), weights, 0.0))
        elif y_pred.shape[0] == 2:
            hits = y_pred[1]
        else:
            raise ValueError(
                "This training model gives its loss and nothing else. For the accuracy make it with "
                "`RWKV.training_model(accuracy=True)`."
            )
        return hits, ops.sum(weights)


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Tokens(TokenMetric):
    """How many tokens were predicted in this epoch; `callbacks.TokensPerSecond` divides it by the time."""

    def __init__(self, name="tokens", **kwargs):
        super().__init__(name, **kwargs)

    def sums(self, labels, y_pred, weights):
        return ops.sum(weights), 0.0

    def result(self):
        return self.above + 0.0  # a tensor of its own: the variable's would change when validation begins


def token_sizes(tokenizer, vocab_size=None):
    """(V,) int32: how many bytes of text each id stands for, 0 for ids without text.

    vocab_size: rows of the model, None for those of the tokenizer.
    """
    size = tokenizer.vocab_size if vocab_size is None else vocab_size
    silent = set(tokenizer.without_text(size))
    return np.array([0 if i in silent else len(tokenizer.token_bytes(i)) for i in range(size)], "int32")
