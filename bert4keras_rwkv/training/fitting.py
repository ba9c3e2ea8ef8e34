"""What every tuning does: batches into `fit`, and a loss of texts that were held out."""

import numpy as np

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.training.callbacks.checkpoint import TrainingCheckpoint
from bert4keras_rwkv.training.datasets import keras_dataset
from bert4keras_rwkv.training.recipe import warm_up_cosine

WARM_UP = 0.05  # of the steps, in which the learning rate rises


def fit_batches(model, batches, steps, learning_rate, checkpoint=None, verbose="auto", callbacks=()):
    """Train a model that gives a loss for `steps` batches with Adam, the learning rate that of `warm_up_cosine`.

    checkpoint: a folder for `TrainingCheckpoint`; training that was killed goes on from there. Returns the mean losses
    of pieces of the training, ten of them if the steps can be divided so.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` is how many batches are trained on, at least 1. Received: steps={steps!r}.")
    epochs = next(n for n in (10, 5, 4, 2, 1) if steps % n == 0)
    rate = warm_up_cosine(learning_rate, steps, int(WARM_UP * steps))
    data, callbacks = keras_dataset(batches), list(callbacks)
    if checkpoint is not None:
        every = max(1, steps // 10)
        callbacks.append(TrainingCheckpoint(checkpoint, every=every, data=data, keep=1))
    model.compile(keras.optimizers.Adam(rate, beta_2=0.99, global_clipnorm=1.0))
    history = model.fit(
        data, epochs=epochs, steps_per_epoch=steps // epochs, shuffle=False, verbose=verbose, callbacks=callbacks
    )
    return history.history.get("loss", [])


def mean_loss(model, batches, counted):
    """The loss of one epoch of batches, each token counting alike.

    counted: a function of a batch that says how many tokens its loss is the mean of.
    """
    total = count = 0.0
    for number in range(len(batches)):
        batch = batches.batch(number)
        tokens = counted(batch)
        if tokens:
            total += tokens * float(np.asarray(model.predict_on_batch(batch)))
            count += tokens
    return total / max(count, 1.0)
