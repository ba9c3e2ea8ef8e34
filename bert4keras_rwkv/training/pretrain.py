"""A whole training, from data and a model to a preset folder: stopped at any time, it goes on where it was."""

from bert4keras_rwkv.training.callbacks.checkpoint import TrainingCheckpoint
from bert4keras_rwkv.training.callbacks.report import ReportLosses
from bert4keras_rwkv.training.datasets import keras_dataset
from bert4keras_rwkv.training.fitting import mean_loss
from bert4keras_rwkv.training.plan import predicted
from bert4keras_rwkv.training.recipe import authors_optimizer, warm_up_cosine


def train(rwkv, batches, plan, folder, held_out=None, save_every=200, say=None):
    """Train an `RWKV` built with packed=True as its authors do, and write it to `folder.path` as a preset.

    batches: `packed`. folder: a `Folder` that was opened. held_out: `packed_held_out`, or None. save_every: steps
    between checkpoints, rounded down to whole reports. say: called at every report with (step, loss, held-out loss or
    None, tokens a second). Returns {step: (loss, held-out loss)}; losses are in nats a token, that of training the mean
    over the steps since the last report.
    """
    steps_per_epoch = min(plan.report_every, plan.steps)
    schedule = warm_up_cosine(plan.learning_rate, plan.steps, plan.warm_up)
    model = rwkv.training_model()
    model.compile(authors_optimizer(rwkv, schedule, plan.weight_decay))

    def report(step, loss, tokens_per_second):
        held = None if held_out is None else mean_loss(model, held_out, predicted)
        folder.report(step, loss, held)
        if say is not None:
            say(step, loss, held, tokens_per_second)

    data = keras_dataset(batches)
    every = max(save_every // plan.report_every, 1) * steps_per_epoch
    model.fit(
        data,
        epochs=-(-plan.steps // steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[
            ReportLosses(plan.steps, plan.batch_size * plan.length, report),
            TrainingCheckpoint(folder.training, every=every, data=data),
        ],
    )
    rwkv.save_to_preset(folder.path)
    folder.finish()
    return folder.losses()
