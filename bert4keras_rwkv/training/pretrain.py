"""A whole training, from data and a model to a preset folder: stopped at any time, it goes on where it was.

A folder becomes a preset when the training ends. Until then `training/` in it holds `run.json`, which says what is
trained, `losses.csv`, and the checkpoints.
"""

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bert4keras_rwkv.atomic import atomic_file, check_folder, remove_unfinished
from bert4keras_rwkv.data.batches import IDS, RESET, PackedBatches, differences
from bert4keras_rwkv.data.binidx import Binidx
from bert4keras_rwkv.data.convert import TEXTS, files_of, kind_of, read_documents
from bert4keras_rwkv.data.documents import Joined, sizes_of
from bert4keras_rwkv.data.records import RecordFile
from bert4keras_rwkv.training.checks import check_counts, check_positive
from bert4keras_rwkv.training.datasets import keras_dataset
from bert4keras_rwkv.training.recipe import authors_optimizer, warm_up_cosine

TRAINING, RECORD, LOSSES = "training", "run.json", "losses.csv"
SPARE_ROWS = 256  # embeddings are padded to round sizes; the Pile's has 155 rows more than its vocabulary


@dataclass(frozen=True)
class Plan:
    """What decides the weights that a training ends with, beside model and data.

    steps of batch_size rows of `length` tokens. learning_rate: the peak. weight_decay, warm_up: see `training.recipe`.
    report_every: steps between two looks at the loss, and at held-out data. seed: orders the documents.
    """

    steps: int
    batch_size: int
    length: int
    learning_rate: float
    weight_decay: float
    warm_up: int = 10
    report_every: int = 50
    seed: int = 0

    def __post_init__(self):
        check_counts(self, steps=1, batch_size=1, report_every=1, length=2, warm_up=0, seed=0)
        check_positive(self, "learning_rate")
        check_positive(self, "weight_decay", or_0=True)
        if self.warm_up >= self.steps:
            raise ValueError(f"`warm_up` is shorter than all steps, {self.steps}. Received: warm_up={self.warm_up}.")


def open_documents(source, tokenizer=None, format=None, separator=None, workers=1, progress=None):
    """The documents of a data set of any form, to be asked for by number: ids stay in their files, texts are encoded
    and kept in memory. Arguments as for `read_documents`.
    """
    kind = kind_of(source, format)
    if kind in TEXTS:
        read = read_documents(source, tokenizer, kind, separator, workers, progress)
        return [document for _, document in read if len(document.ids)]
    return Joined(map(RecordFile if kind == "tfrecord" else Binidx, files_of(source, kind)))


def check_vocabulary(tokenizer, vocab_size):
    """A tokenizer fits a model that has a row for every id, and not many more.

    Raises:
        ValueError: another vocabulary size, and what to do.
    """
    if tokenizer is None or tokenizer.vocab_size <= vocab_size <= tokenizer.vocab_size + SPARE_ROWS:
        return
    raise ValueError(
        f"The tokenizer has ids up to {tokenizer.vocab_size - 1}, and the model {vocab_size} rows for ids. Set "
        f'"vocab_size": {tokenizer.vocab_size} in its configuration, or name its own tokenizer.'
    )


def packed(documents, plan, vocab_size):
    """The batches to train on: rows without padding."""
    return PackedBatches(documents, plan.length, plan.batch_size, plan.seed, vocab_size=vocab_size)


def packed_held_out(documents, plan, vocab_size):
    """The batches to look at the loss of, in the order of the file; fewer rows a batch if there are not enough."""
    sizes = sizes_of(documents)
    tokens = int(sizes.sum() + (sizes > 0).sum())  # one more behind each
    rows = max(min(plan.batch_size, tokens // plan.length), 1)
    return PackedBatches(documents, plan.length, rows, seed=None, vocab_size=vocab_size)


def check_place(path):
    """Find out, before anything is read, whether a training can begin or go on in the folder `path`.

    Raises:
        ValueError: it holds something else. A training that could not begin, on a full disk, counts as nothing.
        OSError: nothing can be written there.
    """
    path = Path(path)
    check_folder(path)
    for folder in (path, path / TRAINING):
        remove_unfinished(folder)
    if not (path / TRAINING / RECORD).is_file() and path.is_dir() and any(map(_is_something, path.iterdir())):
        raise ValueError(f"'{path}' is there already, and it is no training. Choose another folder.")


def _is_something(path):
    return not (path.name == TRAINING and path.is_dir() and not any(path.iterdir()))


class Folder:
    """Where a training writes. settings: what must be the same when it is started again, plain values."""

    def __init__(self, path, settings):
        self.path, self.settings = Path(path), json.loads(json.dumps(settings))
        self.training = self.path / TRAINING
        self._record = self.training / RECORD

    def open(self):
        """Begin, or go on. Returns whether there is anything left to do.

        Raises:
            ValueError: the folder holds another training, or something else.
            OSError: nothing can be written there.
        """
        check_place(self.path)
        if not self._record.is_file():
            self._write(finished=False)
            return True
        record = json.loads(self._record.read_text("utf-8"))
        other = differences(record["settings"], self.settings)
        if other:
            raise ValueError(
                f"'{self.path}' holds another training: {other}. Go on with those, or choose another folder."
            )
        return not record["finished"]

    def losses(self):
        """What was reported: {step: (loss, held-out loss or None)}."""
        path = self.training / LOSSES
        if not path.is_file():
            return {}
        with open(path, encoding="utf-8", newline="") as file:
            return {
                int(row["step"]): (float(row["loss"]), float(row["held_out"]) if row["held_out"] else None)
                for row in csv.DictReader(file)
            }

    def report(self, step, loss, held_out=None):
        """Add a row to `losses.csv`; rows of later steps, of a run that was killed, go."""
        rows = {known: row for known, row in self.losses().items() if known < step} | {step: (loss, held_out)}
        with atomic_file(self.training / LOSSES) as path, open(path, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("step", "loss", "held_out"))
            table.writerows((known, f"{a:.6f}", "" if b is None else f"{b:.6f}") for known, (a, b) in rows.items())

    def finish(self):
        """The preset is written: the checkpoints are no longer needed."""
        from bert4keras_rwkv.training.callbacks.checkpoint import checkpoints

        self._write(finished=True)
        for file in checkpoints(self.training):
            file.unlink()

    def _write(self, finished):
        self.training.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._record) as path:
            path.write_text(json.dumps({"settings": self.settings, "finished": finished}, indent=2), "utf-8")


def train(rwkv, batches, plan, folder, held_out=None, save_every=200, say=None):
    """Train an `RWKV` built with packed=True as its authors do, and write it to `folder.path` as a preset.

    batches: `packed`. folder: a `Folder` that was opened. held_out: `packed_held_out`, or None. save_every: steps
    between checkpoints, rounded down to whole reports. say: called at every report with (step, loss, held-out loss or
    None, tokens a second). Returns {step: (loss, held-out loss)}; losses are in nats a token, that of training the mean
    over the steps since the last report.
    """
    from bert4keras_rwkv.training.callbacks.checkpoint import TrainingCheckpoint
    from bert4keras_rwkv.training.callbacks.report import Report
    from bert4keras_rwkv.training.fitting import mean_loss

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
            Report(plan.steps, plan.batch_size * plan.length, report),
            TrainingCheckpoint(folder.training, every=every, data=data),
        ],
    )
    rwkv.save_to_preset(folder.path)
    folder.finish()
    return folder.losses()


def predicted(batch):
    """How many tokens of a packed batch are predicted: none that begins a row or a document."""
    return batch[IDS][:, 1:].size - int(batch[RESET][:, 1:].sum())


def settings_of(rwkv, batches, plan):
    """What a `Folder` remembers of a training."""
    return {
        **asdict(plan),
        "model": rwkv.config.to_dict(),
        "data": batches.order,
        "dtype": rwkv.backbone.dtype_policy.name,
    }
