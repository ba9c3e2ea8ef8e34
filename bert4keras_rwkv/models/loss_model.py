"""A model that gives a loss: token ids in, a scalar out, without the logits of the whole batch in between."""

import contextlib

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.losses import NextTokenLoss, next_tokens
from bert4keras_rwkv.layers.projection import kernel_matrix
from bert4keras_rwkv.models.backbone import Backbone

IDS, ANSWER, RESET = "Input-Token", "Answer-Mask", "Reset"  # the inputs


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class TokenLoss(keras.layers.Layer):
    """The loss of a backbone's predictions; its weights are the backbone's.

    Called with (ids (B, T) [, answer (B, T)] [, reset (B, T)]); returns the scalar, which is also added to the losses.
    accuracy: returns a pair, the scalar and how many of the tokens that count are the likeliest.
    """

    def __init__(self, backbone, loss, accuracy=False, **kwargs):
        super().__init__(**{"dtype": backbone.dtype_policy, **kwargs})
        self.backbone, self.loss, self.accuracy = backbone, loss, accuracy
        self.built = loss.built = True  # else `fit` reads a batch without effect, to build them
        self.sample_weight = None

    @contextlib.contextmanager
    def weighted(self, sample_weight):
        """While it lasts, a call counts the tokens with the weights (B,), (B, 1) or (B, T) of a batch; None: alike."""
        self.sample_weight = sample_weight
        try:
            yield
        finally:
            self.sample_weight = None

    def call(self, ids, answer=None, reset=None):
        backbone = self.backbone
        backbone.called_by(self)
        present = None if backbone.pad_token_id is None else ops.not_equal(ids, backbone.pad_token_id)
        hidden, _ = backbone.read(ids, backbone.start(ops.shape(ids)[0]), present, reset)
        return self._token_losses(hidden, *next_tokens(ids, self.loss.pad_token_id, answer, reset, self.sample_weight))

    def _token_losses(self, hidden, labels, weights):
        """What `call` returns, from hidden states (B, T, D) before the final norm; the loss is added."""
        head = self.backbone.head
        kernel, trains = kernel_matrix(head), bool(head.trainable_variables)
        output = self.loss.of_hidden(self.backbone.ln_out(hidden), kernel, labels, weights, trains, self.accuracy)
        self.add_loss(output[0] if self.accuracy else output)
        return output

    def compute_output_spec(self, ids, answer=None, reset=None):
        outputs = tuple(keras.KerasTensor((), self.backbone.state_dtypes[0]) for _ in range(1 + self.accuracy))
        return outputs if self.accuracy else outputs[0]

    def get_config(self):
        parts = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("backbone", "loss")}
        return {**super().get_config(), **parts, "accuracy": self.accuracy}

    @classmethod
    def from_config(cls, config):
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("backbone", "loss")}
        if not parts["backbone"].built:
            parts["backbone"].build()
        return cls(**{**config, **parts})


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class TrainingModel(keras.Model):
    """A functional model around a `TokenLoss`, whose metrics count by token.

    Metrics get labels (B, T), a vector of the mean loss [and the number of hits], and the weights of the labels (B, T):
    those of `training.metrics` know what to make of it.
    A `sample_weight` of `fit`, a number for each text or each token, multiplies what counts: the loss is the weighted
    mean, so that 0 leaves out and weights that are all alike change nothing.
    """

    def compile(self, optimizer="rmsprop", metrics=None, weighted_metrics=None, **options):
        """`keras.Model.compile`. All metrics are weighted: what does not count in the loss counts nowhere."""
        weighted = [*(metrics or ()), *(weighted_metrics or ())]
        super().compile(optimizer, weighted_metrics=weighted or None, **options)

    def compile_from_config(self, config):
        """What Keras does with a model that was saved compiled; it asks for this where `compile` is one's own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, *args, sample_weight=None, validation_data=None, **options):
        """`keras.Model.fit`."""
        if isinstance(validation_data, tuple | list) and len(validation_data) == 3:
            held_out, labels, weights = validation_data
            validation_data = held_out, _labels(labels, weights), weights
        options |= {"sample_weight": sample_weight, "validation_data": validation_data}
        return super().fit(x, _labels(y, sample_weight), *args, **options)

    def evaluate(self, x=None, y=None, *args, sample_weight=None, **options):
        """`keras.Model.evaluate`."""
        return super().evaluate(x, _labels(y, sample_weight), *args, sample_weight=sample_weight, **options)

    def train_step(self, *args):  # (data) or, on JAX, (state, data)
        with self._weighted(args[-1]):
            return super().train_step(*args)

    def test_step(self, *args):
        with self._weighted(args[-1]):
            return super().test_step(*args)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        labels, weights = self._counted(x, sample_weight)
        return super().compute_metrics(x, labels, ops.stack(keras.tree.flatten(y_pred)), weights)

    def _weighted(self, data):
        return self.get_layer("token_loss").weighted(keras.utils.unpack_x_y_sample_weight(data)[2])

    def _counted(self, x, sample_weight=None):
        """Labels and weights of the inputs, which come by name or in their order."""
        given, loss = self._named(x), self.get_layer("token_loss").loss
        return next_tokens(given[IDS], loss.pad_token_id, given.get(ANSWER), given.get(RESET), sample_weight)

    def _named(self, x):
        names = [tensor.name for tensor in self.inputs]
        return x if isinstance(x, dict) else dict(zip(names, keras.tree.flatten(x), strict=True))


def _labels(y, sample_weight):
    """Labels that nobody reads, for Keras drops a sample_weight without any."""
    return np.zeros(len(sample_weight), "int32") if y is None and sample_weight is not None else y


def training_model(backbone: Backbone, sequence_length=None, packed=False, loss=None, accuracy=False):
    """A functional Keras model `Input-Token` [, `Answer-Mask`] [, `Reset`] -> the scalar loss, to `compile` and `fit`.

    loss: a NextTokenLoss, None for one with the backbone's pad id. packed: with `Reset` (B, T), 1 where a document
    begins. accuracy: a second output counts the hits, for the metric `TokenAccuracy`.
    """
    return loss_model(TrainingModel, TokenLoss, backbone, sequence_length, packed, loss, accuracy=accuracy)


def loss_model(model, layer, backbone, sequence_length, packed, loss, **options):
    """A functional model of class `model` around a `layer(backbone, loss, **options)`; the rest as `training_model`."""
    backbone.check_one_device()
    if loss is None:
        loss = NextTokenLoss(pad_token_id=backbone.pad_token_id, name="next_token_loss")
    if not isinstance(loss, NextTokenLoss):
        raise ValueError(
            "`training_model` takes a NextTokenLoss. A loss of your own goes behind `RWKV.model`, see layers.Loss. "
            f"Received: {type(loss).__name__}."
        )
    inputs = {"ids": keras.Input((sequence_length,), dtype="int32", name=IDS)}
    if loss.answer_mask:
        inputs["answer"] = keras.Input((sequence_length,), dtype="int32", name=ANSWER)
    if packed:
        inputs["reset"] = keras.Input((sequence_length,), dtype="int32", name=RESET)
    tensors, ids = list(inputs.values()), inputs.pop("ids")
    output = layer(backbone, loss, name="token_loss", **options)(ids, **inputs)
    made = model(tensors, output, name=f"{backbone.config.model}_training")
    backbone.used_by(made)
    return made
