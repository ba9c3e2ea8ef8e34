"""Tuning a model, a state, a LoRA, both, or a prompt as a state: from documents to the file that was asked for."""

import math
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bert4keras_rwkv.atomic import check_file
from bert4keras_rwkv.data.batches import ANSWER, IDS, RESET, PackedBatches
from bert4keras_rwkv.data.documents import document, place_of, sizes_of
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.losses import NextTokenLoss, token_weights
from bert4keras_rwkv.layers.projection import scheme_of
from bert4keras_rwkv.models.lora import LORA_FILES
from bert4keras_rwkv.models.quantization import Quantization, projections
from bert4keras_rwkv.training.distil import distil_prompt
from bert4keras_rwkv.training.fitting import fit_batches, mean_loss
from bert4keras_rwkv.training.folder import Folder, check_place

APART = 10  # one document of so many is held out where no others are given


@dataclass(frozen=True)
class Tuned:
    """The held-out loss before and after, in nats a token: cross-entropy, or of a prompt the divergence from it."""

    before: float
    after: float


class Subset(Sequence):
    """Subset of a sequence of documents, which stay where they are."""

    def __init__(self, documents, numbers):
        self.documents, self.numbers = documents, numbers
        self.sizes = sizes_of(documents)[numbers]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, number):
        return self.documents[self.numbers[number]]

    def place(self, number):
        return place_of(self.documents, self.numbers[number])


def tune(rwkv, tuning, path, documents=None, held_out=None, say=None):
    """Tune an `RWKV` built with packed=True, and write what was tuned to `path`. Returns a `Tuned`.

    documents, held_out: `Document`s or ids. Without held_out a tenth of the documents is held out; without documents,
    which a prompt does not need, the model writes them. path: a state is written as `RWKV.save_state` does, anything
    with a LoRA as `RWKV.save_adapter`. say: called with (share of the steps done, loss) now and then.
    Training that was killed goes on when it is started again: until it ends, a folder beside `path` keeps checkpoints.

    Raises:
        ValueError: a file that cannot hold what is tuned, too few documents, checkpoints of another training, or a
            loss that is no longer finite.
        OSError: nothing can be written to `path`.
    """
    check_target(tuning, path)
    for name, some in (("documents", documents), ("held_out", held_out)):
        if some is not None and len(some) == 0:
            raise ValueError(f"There is nothing to read: `{name}` holds no document that is not empty.")
    random.seed(tuning.seed)  # what a LoRA begins with is drawn by it; Keras' own function would load TensorFlow
    if documents is not None and held_out is None and len(documents) > 1:
        documents, held_out = _apart(documents, tuning.seed)
    if documents is not None and held_out is None and tuning.mode != "prompt":
        raise ValueError(
            "One document cannot be trained on and held out. Give documents to measure with: held_out, or --held-out."
        )
    if tuning.quantize is not None:
        _quantise(rwkv, tuning.quantize)
    if tuning.mode == "prompt":
        return _tune_prompt(rwkv, tuning, path, documents, held_out, say)
    if documents is None:
        raise ValueError(f"The mode {tuning.mode!r} needs documents to train on.")
    return _tune_on(rwkv, tuning, path, documents, held_out, say)


def check_target(tuning, path):
    """Refuse a path that cannot be written, or whose suffix promises a file that cannot hold what is tuned."""
    check_file(path)
    check_place(training_folder(path))
    if not str(path).endswith(LORA_FILES):
        return
    if tuning.has_state and (tuning.time_shift or tuning.has_lora):
        what = "last inputs of the layers" if tuning.time_shift else "a state with a LoRA"
        suffix = ".safetensors" if tuning.has_lora else ".state"
        raise ValueError(
            f"Files of other programs ({' and '.join(LORA_FILES)}) have no place for {what}. Give another suffix, such "
            f"as {suffix}. Received: '{path}'."
        )


def _tune_on(rwkv, tuning, path, documents, held_out, say):
    """State, LoRA or both, by the cross-entropy of documents."""
    if tuning.has_lora:
        rwkv.enable_lora(tuning.rank, tuning.alpha, tuning.targets)
    if tuning.has_state:
        rwkv.enable_state_tuning(tuning.time_shift)
    answers = any(document(one).answer is not None for one in (*documents, *held_out))
    batches, held = _batches(rwkv, tuning, documents, answers), _held_out(rwkv, tuning, held_out, answers)
    steps = tuning.steps or tuning.epochs * len(batches)
    with tempfile.TemporaryDirectory() as nowhere:  # what cannot be written is better known now
        write_tuned(rwkv, tuning, Path(nowhere, Path(path).name))
    folder = _opened(rwkv, tuning, path, batches)
    loss = NextTokenLoss(answer_mask=answers, pad_token_id=rwkv.backbone.pad_token_id, name="next_token_loss")
    model = rwkv.training_model(loss)
    before = mean_loss(model, held, _counted)
    fit_batches(model, batches, steps, tuning.rate, folder.training, verbose=0, callbacks=_followed(say, folder))
    return _finished(rwkv, tuning, path, folder, Tuned(before, mean_loss(model, held, _counted)))


def _tune_prompt(rwkv, tuning, path, documents, held_out, say):
    """A state that predicts as behind prompts."""
    texts, held = ([document(one).ids for one in some] if some else None for some in (documents, held_out))
    folder = _opened(rwkv, tuning, path, None)
    found = distil_prompt(
        rwkv,
        list(tuning.prompts),
        texts,
        time_shift_tuning=tuning.time_shift,
        held_out=held,
        steps=tuning.steps or 200,
        batch_size=tuning.batch_size,
        length=tuning.length,
        learning_rate=tuning.rate,
        seed=tuning.seed,
        checkpoint=folder.training,
        verbose=0,
        callbacks=_followed(say, folder),
    )
    return _finished(rwkv, tuning, path, folder, Tuned(found.before, found.after))


def write_tuned(rwkv, tuning, path):
    """Write what was tuned: an adapter if there is a LoRA, else the state."""
    if tuning.has_lora:
        rwkv.save_adapter(path)
    else:
        rwkv.save_state(rwkv.tuned_state(), path)


def training_folder(path):
    """Where the checkpoints of what is tuned stand until it is written."""
    return Path(f"{os.fspath(path)}.training")


def _opened(rwkv, tuning, path, batches):
    """The `Folder` beside `path` in which training can go on."""
    model = {"model": rwkv.config.to_dict(), "dtype": rwkv.backbone.compute_dtype}
    settings = {**asdict(tuning), "data": None if batches is None else batches.order, **model}
    folder = Folder(training_folder(path), settings)
    folder.open()
    return folder


def _finished(rwkv, tuning, path, folder, tuned):
    _check_finite(tuned.after, folder)
    write_tuned(rwkv, tuning, path)
    shutil.rmtree(folder.path)
    return tuned


def _check_finite(loss, folder):
    """A training that left the finite numbers ends; its checkpoints would lead there again, and go."""
    if not math.isfinite(loss):
        shutil.rmtree(folder.path)
        raise ValueError(f"The loss became {loss}, and nothing was written. Take a smaller learning rate.")


def _quantise(rwkv, mode):
    """Store the matrices of the base in fewer bytes, unless they are so already."""
    wanted = Quantization.of(mode)
    if any(scheme_of(layer) != wanted.scheme(path) for path, layer in projections(rwkv.backbone).items()):
        rwkv.quantize(mode)


def _apart(documents, seed):
    """Documents to train on and some to measure with."""
    order = np.random.default_rng(seed).permutation(len(documents)).tolist()
    count = max(1, len(documents) // APART)
    return Subset(documents, order[count:]), Subset(documents, order[:count])


def _batches(rwkv, tuning, documents, answers):
    return PackedBatches(
        documents,
        tuning.length,
        tuning.batch_size,
        tuning.seed,
        answer_mask=answers,
        vocab_size=rwkv.config.vocab_size,
    )


def _held_out(rwkv, tuning, documents, answers):
    """Batches in the order of the documents, as large as there are tokens for."""
    tokens = int(sizes_of(documents).sum()) + len(documents)
    length = min(tuning.length, tokens)
    rows = min(tuning.batch_size, max(1, tokens // length))
    return PackedBatches(documents, length, rows, None, answer_mask=answers, vocab_size=rwkv.config.vocab_size)


def _counted(batch):
    """How many tokens of a packed batch its loss is the mean of."""
    return float(ops.convert_to_numpy(token_weights(batch[IDS], None, batch.get(ANSWER), batch[RESET])).sum())


def _followed(say, folder):
    """Callbacks that look at the loss now and then, and tell how far training is."""

    class Told(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            _check_finite(float(logs["loss"]), folder)
            if say is not None:
                say((epoch + 1) / self.params["epochs"], logs["loss"])

    return [Told()]
