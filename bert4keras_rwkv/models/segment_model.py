"""Texts longer than memory: a segment at a time is trained on, and the state goes from one to the next.

Truncated back-propagation through time. Williams and Peng 1990. With RWKV's state it needs neither window nor cache.
"""

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.losses import each_token, next_tokens
from bert4keras_rwkv.models.loss_model import IDS, TokenLoss, TrainingModel, loss_model
from bert4keras_rwkv.state import RWKVState

NONE = -1  # the last token of a row that has read nothing


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class SegmentLoss(TokenLoss):
    """The loss of one segment of `batch_size` rows, each of which goes on where it was after the last call.

    Called with (ids (B, T), reset (B, T) [, answer (B, T)]); returns what `TokenLoss` does. Between calls it holds the
    state of each row after all of its tokens but the last, and that token: so the first token of a segment is predicted
    as any other. No gradient goes into the segment before. Evaluation (training false) goes on from its own state.
    """

    def __init__(self, backbone, loss, batch_size, accuracy=False, **kwargs):
        super().__init__(backbone, loss, accuracy, **kwargs)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` is how many texts are read at once. Received: batch_size={batch_size!r}.")
        self.batch_size = batch_size
        self.trained, self.evaluated = self._carry("trained"), self._carry("evaluated")

    def call(self, ids, reset, answer=None, training=None):
        if ids.shape[0] not in (None, self.batch_size):
            raise ValueError(f"This model carries the states of {self.batch_size} rows. Received: {ids.shape[0]} rows.")
        backbone, carry = self.backbone, self.trained if training else self.evaluated
        backbone.called_by(self)
        wkv, shift, token, begins = (ops.copy(variable) for variable in carry)  # PyTorch assigns in place
        ids, reset = ops.cast(ids, "int32"), ops.cast(ops.not_equal(reset, 0), "int32")
        nothing_read = ops.cast(ops.equal(token, NONE), "int32")
        # One token later: a row reads the last token of before and all but the last of now.
        ids = ops.concatenate([token, ids], axis=1)
        reset = ops.concatenate([begins, ops.maximum(reset[:, :1], nothing_read), reset[:, 1:]], axis=1)
        hidden, state = backbone.read(ids[:, :-1], backbone.unpack(wkv, shift), None, reset[:, :-1])
        for variable, value in zip(carry, (*backbone.pack(state), ids[:, -1:], reset[:, -1:]), strict=True):
            variable.assign(ops.stop_gradient(value))
        if answer is not None:
            answer = _preceded(answer)
        weight = _preceded_weight(self.sample_weight, ids[:, 1:])
        labels, weights = (x[:, :-1] for x in next_tokens(ids, self.loss.pad_token_id, answer, reset, weight))
        return self._token_losses(hidden, labels, weights)

    def compute_output_spec(self, ids, reset, answer=None, training=None):
        return super().compute_output_spec(ids)

    def reset_states(self):
        """Let every row begin anew."""
        for *others, token, begins in (self.trained, self.evaluated):
            for variable in (*others, begins):
                variable.assign(ops.zeros(variable.shape, variable.dtype))
            token.assign(ops.full(token.shape, NONE, token.dtype))

    def get_config(self):
        return {**super().get_config(), "batch_size": self.batch_size}

    def _carry(self, name):
        """What one step leaves to the next: wkv, shift, the last token (B, 1), and whether it begins a document."""
        shapes, dtypes = RWKVState.shapes(self.backbone.config), self.backbone.state_dtypes
        kinds = {
            "wkv": (shapes[0], dtypes[0], "zeros"),
            "shift": (shapes[1], dtypes[1], "zeros"),
            "token": ((1,), "int32", keras.initializers.Constant(NONE)),
            "begins": ((1,), "int32", "zeros"),
        }
        return [
            self.add_weight(
                shape=(self.batch_size, *shape),
                dtype=dtype,
                initializer=initializer,
                trainable=False,
                autocast=False,
                name=f"{name}_{part}",
            )
            for part, (shape, dtype, initializer) in kinds.items()
        ]


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class SegmentTrainer(TrainingModel):
    """A functional model around a `SegmentLoss`."""

    def reset_states(self):
        """Forget what was read, in training and in evaluation: every row begins anew with the next segment."""
        self.get_layer("token_loss").reset_states()

    def _counted(self, x, sample_weight=None):
        # The token before a segment counts as real; the column that it stands in predicts the segment's first.
        given = self._named(x)
        weight = _preceded_weight(sample_weight, given[IDS])
        given = {name: _preceded(value) for name, value in given.items()}
        return tuple(values[:, :-1] for values in super()._counted(given, weight))


def segment_trainer(backbone, batch_size, sequence_length=None, loss=None, accuracy=False):
    """A functional Keras model `Input-Token`, `Reset` [, `Answer-Mask`], each (batch_size, T), -> the scalar loss.

    The backbone masks no padding (packed). Other arguments and the output as for `training_model`. It is a model and
    not a callback, because what is carried must be computed with the gradient, in one compiled step: a callback would
    read every segment again.
    """
    options = {"batch_size": batch_size, "accuracy": accuracy}
    return loss_model(SegmentTrainer, SegmentLoss, backbone, sequence_length, True, loss, **options)


def _preceded_weight(sample_weight, ids):
    """The weight of each token of ids as `_preceded`; None stays None."""
    return None if sample_weight is None else _preceded(each_token(sample_weight, ids))


def _preceded(x):
    """(B, T) as (B, T + 1), with a first column of the first one's values, which stands for the token before."""
    return ops.concatenate([x[:, :1], x], axis=1)
