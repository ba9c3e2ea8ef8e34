"""Strings as the data of `RWKV.fit`: what makes of them the inputs of a model that gives a loss."""

import numpy as np

from bert4keras_rwkv.layers.losses import NextTokenLoss
from bert4keras_rwkv.models.loss_model import ANSWER, IDS, RESET
from bert4keras_rwkv.tokenizers.prompts import strings_in, unix_lines

LENGTH = 1024  # of the rows of a `tf.data` set, whose longest text is not known, where the model does not say it


def text_loss():
    """The loss of `Texts`: it counts every token of a text and its end, though padding has the end's id."""
    return NextTokenLoss(answer_mask=True, pad_token_id=None, name="next_token_loss")


class Texts:
    """Strings to rows of ids, each closed by the end token, cut to `length` (None: the longest of what is given)."""

    def __init__(self, tokenizer, length, packed):
        self.tokenizer, self.length, self.packed = tokenizer, length, packed

    def rows(self, texts):
        """A list of str -> the inputs by name, (B, T) int32 each."""
        end = [] if self.tokenizer.end_token is None else [self.tokenizer.end_token]
        rows = [ids + end for ids in self.tokenizer.encode([unix_lines(text) for text in texts])]
        length = self.length or max(map(len, rows))
        ids, answer, reset = np.zeros((3, len(rows), length), "int32")
        for number, row in enumerate(rows):
            row = row[:length]
            ids[number, : len(row)], answer[number, : len(row)] = row, 1
        reset[:, 0] = 1
        return {IDS: ids, ANSWER: answer, **({RESET: reset} if self.packed else {})}

    def dataset(self, dataset, batch_size):
        """A `tf.data` set of str, or of batches of them, as one of inputs by name."""
        import tensorflow as tf

        if dataset.element_spec.shape.rank == 0:
            dataset = dataset.batch(batch_size or 32)
        length = self.length or LENGTH
        names = [IDS, ANSWER, *([RESET] if self.packed else [])]

        def rows(texts):
            made = Texts(self.tokenizer, length, self.packed).rows(strings_in(texts))
            return [made[name] for name in names]

        def inputs(texts):
            arrays = tf.numpy_function(rows, [texts], [tf.int32] * len(names), stateful=False)
            return {name: tf.ensure_shape(x, (None, length)) for name, x in zip(names, arrays, strict=True)}

        return dataset.map(inputs).prefetch(2)


def is_dataset(x):
    """Whether `x` is a `tf.data` set; asked without loading TensorFlow."""
    return hasattr(x, "as_numpy_iterator") and hasattr(x, "element_spec")


def of_text(dataset):
    """Whether the elements of a `tf.data` set are strings."""
    return getattr(getattr(dataset.element_spec, "dtype", None), "name", None) == "string"
