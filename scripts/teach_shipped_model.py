"""Teach the shipped model to answer: from the reader that `train_shipped_model.py` trained to the preset that ships.

    python scripts/make_conversations.py
    KERAS_BACKEND=jax python scripts/teach_shipped_model.py

Reads `reader` (a preset), `train.jsonl`, `held_out.jsonl` and `conversations.jsonl` in build/jargon. Rows are packed
with conversations, of which only answers are learned, and with the documents, so that the model goes on writing like
them. `measure_shipped_model.py` asks it afterwards, and writes the README of the preset.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from bert4keras_rwkv.data.documents import Document
from bert4keras_rwkv.evaluation import evaluate_text
from bert4keras_rwkv.layers.losses import NextTokenLoss
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.training import PackedBatches, authors_optimizer, encode_documents, keras_dataset, warm_up_cosine

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "build/jargon"
READER = DATA / "reader"
OUT = ROOT / "bert4keras_rwkv/presets/finch-jargon"
REPORT_EVERY = 100  # steps
END = 0


def lines(path):
    """What a JSONL file holds, parsed."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def after_end(one):
    """A `Document` with an end token before it, which `evaluate_text` reads there, too."""
    answer = None if one.answer is None else np.append(np.int32(0), one.answer)
    return Document(np.append(np.int32(END), one.ids), answer)


def mixture(tokenizer, documents, conversations, repeat):
    """The `Document`s of one pass: every conversation once, half of them after an end token; every document `repeat`
    times.
    """
    talks = encode_documents(conversations, tokenizer)
    read = [after_end(one) for one in encode_documents(documents, tokenizer)]
    return [after_end(one) if i % 2 else one for i, one in enumerate(talks)] + repeat * read


def teach(rwkv, batches, args):
    """Fit `rwkv`, built with packed=True, and return Keras' history."""
    model = rwkv.training_model(loss=NextTokenLoss(answer_mask=True, pad_token_id=None))
    schedule = warm_up_cosine(args.learning_rate, args.steps, max(args.steps // 20, 1))
    model.compile(authors_optimizer(rwkv, schedule, args.weight_decay))
    data = keras_dataset(batches)
    return model.fit(
        data, epochs=args.steps // REPORT_EVERY, steps_per_epoch=REPORT_EVERY, shuffle=False, verbose=2
    ).history


def export(rwkv, out):
    """Write the preset in the dtype of the reader, and return what was written, read again."""
    taught = RWKV.from_preset(READER)
    for variable, trained in zip(taught.model.variables, rwkv.model.variables, strict=True):
        variable.assign(trained)
    taught.save_to_preset(out)
    return RWKV.from_preset(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="rows a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens a row (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=2, help="documents to one pass of talk (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the peak (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="preset folder (default: %(default)s)")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    rwkv = RWKV.from_preset(READER, dtype="float32", packed=True)
    taught = mixture(rwkv.tokenizer, lines(DATA / "train.jsonl"), lines(DATA / "conversations.jsonl"), args.repeat)
    batches = PackedBatches(taught, args.length, args.batch, args.seed, answer_mask=True)
    print(f"{len(batches)} batches to one pass")
    start = time.time()
    losses = teach(rwkv, batches, args)["loss"]
    settings = {name: getattr(args, name) for name in ("steps", "batch", "length")}
    record = {**settings, "minutes": (time.time() - start) / 60, "loss": losses}
    (DATA / "teaching.json").write_text(json.dumps(record), encoding="utf-8")
    before, after = (
        evaluate_text(model, lines(DATA / "held_out.jsonl")).bits_per_byte
        for model in (RWKV.from_preset(READER), export(rwkv, args.out))
    )
    print(f"{args.out}: {after:.3f} bits per byte held out, {before:.3f} before it was taught")


if __name__ == "__main__":
    main()
