"""A model that gives a loss: token ids in, a scalar out, without the logits of the whole batch in between."""

import keras
from keras import ops

from bert4keras_rwkv.layers.losses import NextTokenLoss
from bert4keras_rwkv.models.backbone import Backbone


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class TokenLoss(keras.layers.Layer):
    """The loss of a backbone's predictions; its weights are the backbone's.

    Called with (ids (B, T) [, answer (B, T)] [, reset (B, T)]); returns the scalar, which is also added to the losses.
    """

    def __init__(self, backbone, loss, **kwargs):
        super().__init__(**{"dtype": backbone.dtype_policy, **kwargs})
        self.backbone, self.loss = backbone, loss
        self.built = True

    def call(self, ids, answer=None, reset=None):
        backbone = self.backbone
        present = None if backbone.pad_token_id is None else ops.not_equal(ids, backbone.pad_token_id)
        hidden, _ = backbone.read(ids, backbone.start(ops.shape(ids)[0]), present, reset)
        head = backbone.head
        kernel, trains = _kernel(head), bool(head.trainable_variables)
        loss = self.loss.of_hidden(ids, backbone.ln_out(hidden), kernel, answer, reset, kernel_trains=trains)
        self.add_loss(loss)
        return loss

    def compute_output_spec(self, ids, answer=None, reset=None):
        return keras.KerasTensor((), self.backbone.state_dtypes[0])

    def get_config(self):
        parts = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("backbone", "loss")}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config):
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("backbone", "loss")}
        if not parts["backbone"].built:
            parts["backbone"].build()
        return cls(**{**config, **parts})


def _kernel(dense):
    """The kernel (inputs, outputs) that a projection multiplies by, as a tensor; a quantised one says it of itself."""
    if dense.quantization_mode is None:
        return ops.convert_to_tensor(dense.kernel)
    return dense(ops.eye(dense.kernel.shape[0], dtype=dense.compute_dtype))


def training_model(backbone: Backbone, sequence_length=None, packed=False, loss=None):
    """A functional Keras model `Input-Token` [, `Answer-Mask`] [, `Reset`] -> the scalar loss, to `compile` and `fit`.

    loss: a NextTokenLoss, None for one with the backbone's pad id. packed: with `Reset` (B, T), 1 where a document
    begins.
    """
    if loss is None:
        loss = NextTokenLoss(pad_token_id=backbone.pad_token_id, name="next_token_loss")
    if not isinstance(loss, NextTokenLoss):
        raise ValueError(
            "`training_model` takes a NextTokenLoss. A loss of your own goes behind `RWKV.model`, see layers.Loss. "
            f"Received: {type(loss).__name__}."
        )
    inputs = {"ids": keras.Input((sequence_length,), dtype="int32", name="Input-Token")}
    if loss.answer_mask:
        inputs["answer"] = keras.Input((sequence_length,), dtype="int32", name="Answer-Mask")
    if packed:
        inputs["reset"] = keras.Input((sequence_length,), dtype="int32", name="Reset")
    ids, *_ = tensors = list(inputs.values())
    layer = TokenLoss(backbone, loss, name="token_loss")
    output = layer(ids, **{name: x for name, x in inputs.items() if name != "ids"})
    return keras.Model(tensors, output, name=f"{backbone.config.model}_training")
