"""The folder of a training that may be stopped at any time: what is trained, the losses so far, the checkpoints.

It becomes a preset when the training ends. Until then `training/` in it holds `run.json`, which says what is trained,
`losses.csv`, and the checkpoints.
"""

import csv
import json
from pathlib import Path

from bert4keras_rwkv.atomic import atomic_file, check_folder, remove_unfinished
from bert4keras_rwkv.data.batches import differences

TRAINING, RECORD, LOSSES = "training", "run.json", "losses.csv"


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
        self._write(finished=True)
        for file in checkpoints(self.training):
            file.unlink()

    def _write(self, finished):
        self.training.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._record) as path:
            path.write_text(json.dumps({"settings": self.settings, "finished": finished}, indent=2), "utf-8")


def checkpoints(folder):
    """The files of a `TrainingCheckpoint` in a folder, the newest last."""
    return sorted(Path(folder).glob("epoch-*-step-*.safetensors"))
