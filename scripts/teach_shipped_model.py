"""Teach the shipped model to answer: from the reader that `train_shipped_model.py` trained to the preset that ships.

    python scripts/make_conversations.py
    KERAS_BACKEND=jax python scripts/teach_shipped_model.py --out build/jargon/taught
    KERAS_BACKEND=jax python scripts/teach_shipped_model.py --start build/jargon/taught --recall \\
        --steps 800 --repeat 4 --learning-rate 6e-4 --seed 2

Reads `reader` (a preset), `train.jsonl`, `held_out.jsonl` and `conversations.jsonl` in build/jargon. Rows are packed
with conversations, of which only answers are learned, and with the documents, so that the model goes on writing like
them. The first run learns the documents once more, by heart in part, and gets worse at others. The second learns not
them, but what the reader predicts in them, and is as good again at others. `measure_shipped_model.py` asks the model
afterwards, and writes the README of the preset.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from bert4keras_rwkv.data.batches import ANSWER as ANSWER_MASK
from bert4keras_rwkv.data.batches import IDS, RESET
from bert4keras_rwkv.data.documents import Document
from bert4keras_rwkv.evaluation import evaluate_text
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.training import PackedBatches, authors_optimizer, encode_documents, warm_up_cosine
from bert4keras_rwkv.weights.folder import TEMPLATE
from bert4keras_rwkv.weights.formats.keras_h5 import write_preset

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "build/jargon"
READER = DATA / "reader"
OUT = ROOT / "bert4keras_rwkv/presets/finch-jargon"
REPORT_EVERY = 100  # steps
END = 0
ANSWER, DOCUMENT = 1, 2  # in the answer mask: a token of an answer, of a document


def lines(path):
    """What a JSONL file holds, parsed."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def after_end(one):
    """A `Document` with an end token before it, as `evaluate_text` reads it. Its answer mask says what it is."""
    answer = np.full(len(one.ids), DOCUMENT, np.int32) if one.answer is None else one.answer
    return Document(np.append(np.int32(END), one.ids), np.append(np.int32(0), answer))


def mixture(tokenizer, documents, conversations, repeat):
    """The `Document`s of one pass: every conversation once, half of them after an end token; every document `repeat`
    times.
    """
    talks = encode_documents(conversations, tokenizer)
    read = [after_end(one) for one in encode_documents(documents, tokenizer)]
    return [after_end(one) if i % 2 else one for i, one in enumerate(talks)] + repeat * read


class Targets(keras.utils.PyDataset):
    """Batches (inputs, distributions (B, T, V) of each next token, weights (B, T)) for `rwkv.model`.

    A next token that is to be learned has the weight 1. Its distribution is the token itself, or in documents what the
    `reader` predicts, None for the token there, too.
    """

    def __init__(self, batches, vocab_size, reader=None):
        super().__init__()
        self.batches, self.vocab_size, self.reader = batches, vocab_size, reader
        self.start = 0

    def __len__(self):
        return REPORT_EVERY

    def on_epoch_end(self):
        self.start += REPORT_EVERY

    def __getitem__(self, index):
        batch = self.batches.batch(self.start + index)
        ids, reset, answer = batch[IDS], batch[RESET], batch[ANSWER_MASK]
        following = np.roll(ids, -1, axis=1)
        targets = np.zeros((*ids.shape, self.vocab_size), "float32")
        np.put_along_axis(targets, following[..., None], 1.0, axis=-1)
        learned = np.roll(np.where(reset, 0, answer), -1, axis=1)
        learned[:, -1] = 0
        if self.reader is not None:
            logits = np.asarray(self.reader.model.predict_on_batch([ids, reset]))
            recalled = np.exp(logits - logits.max(-1, keepdims=True))
            recalled /= recalled.sum(-1, keepdims=True)
            targets = np.where(learned[..., None] == DOCUMENT, recalled, targets)
        return [ids, reset], targets, np.float32(learned > 0)


def teach(rwkv, data, args):
    """Fit `rwkv`, built with packed=True, and return Keras' history."""
    schedule = warm_up_cosine(args.learning_rate, args.steps, max(args.steps // 20, 1))
    optimizer = authors_optimizer(rwkv, schedule, args.weight_decay)
    rwkv.model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
    return rwkv.model.fit(data, epochs=args.steps // REPORT_EVERY, shuffle=False, verbose=2).history


def export(rwkv, out):
    """Write the preset in float16, with the form of its conversations, and return what was written, read again."""
    weights = rwkv.weights()
    weights.metadata[TEMPLATE] = "world"
    write_preset(out, weights, rwkv.config, dtype="float16", tokenizer=rwkv.tokenizer)
    return RWKV.from_preset(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="rows a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens a row (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=2, help="documents to one pass of talk (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the peak (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.3, help="default: %(default)s")
    parser.add_argument("--start", type=Path, default=READER, help="preset to begin with (default: %(default)s)")
    parser.add_argument("--recall", action="store_true", help="learn of documents what the reader predicts in them")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="preset folder (default: %(default)s)")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    rwkv = RWKV.from_preset(args.start, dtype="float32", packed=True)
    reader = RWKV.from_preset(READER, dtype="float32", packed=True) if args.recall else None
    taught = mixture(rwkv.tokenizer, lines(DATA / "train.jsonl"), lines(DATA / "conversations.jsonl"), args.repeat)
    batches = PackedBatches(taught, args.length, args.batch, args.seed, answer_mask=True)
    print(f"{len(batches)} batches to one pass")
    start = time.time()
    losses = teach(rwkv, Targets(batches, rwkv.config.vocab_size, reader), args)["loss"]
    settings = {name: getattr(args, name) for name in ("steps", "batch", "length")}
    record = {**settings, "minutes": (time.time() - start) / 60, "loss": losses}
    (DATA / ("recalling.json" if args.recall else "teaching.json")).write_text(json.dumps(record), encoding="utf-8")
    before, after = (
        evaluate_text(model, lines(DATA / "held_out.jsonl")).bits_per_byte
        for model in (RWKV.from_preset(READER), export(rwkv, args.out))
    )
    print(f"{args.out}: {after:.3f} bits per byte held out, {before:.3f} of the reader")


if __name__ == "__main__":
    main()
