"""Train a small RWKV-6 that writes like the Jargon File, from random weights to a preset folder.

    python scripts/make_corpus.py && python scripts/make_vocabulary.py
    KERAS_BACKEND=jax python scripts/train_shipped_model.py

Reads `train.jsonl`, `held_out.jsonl` and `vocab.txt` in build/jargon. Keeps the trained weights there, so that
--export-only can write the preset, build/jargon/reader, and the plot once more. `teach_shipped_model.py` makes of it
the model that ships with the package.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from bert4keras_rwkv.evaluation import evaluate_text
from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.training import authors_optimizer, warm_up_cosine
from bert4keras_rwkv.versions.table import filled

ROOT = Path(__file__).resolve().parent.parent
SIZES = {
    "model": "rwkv6",
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "attention_head_size": 32,
    "intermediate_size": 640,
    "decomposer_size": 16,
    "time_decay_size": 32,
}
DATA = ROOT / "build/jargon"
OUT = DATA / "reader"
PLOT = ROOT / "docs/shipped-model-loss.png"
REPORT_EVERY = 50  # steps
VALIDATE_EVERY = 5  # reports
END = 0


def texts(path):
    """The documents of a JSONL file."""
    return [json.loads(line)["text"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


class Windows(keras.utils.PyDataset):
    """Batches of `length` tokens from the documents in ever new order, an end token before each.

    (inputs (B, T), the same moved on by one token). One epoch of Keras is `REPORT_EVERY` batches.
    """

    def __init__(self, documents, length, batch, seed=0):
        super().__init__()
        self.documents, self.length, self.batch = documents, length, batch
        self.order = np.random.default_rng(seed)
        self.rest = np.zeros(0, "int32")
        self.rows = []

    def __len__(self):
        return REPORT_EVERY

    def __getitem__(self, index):
        while len(self.rows) < self.batch:
            self.rows.extend(self._pass())
        rows, self.rows = np.stack(self.rows[: self.batch]), self.rows[self.batch :]
        return rows[:, :-1], rows[:, 1:]

    def _pass(self):
        """All documents once, as shuffled windows of length + 1 that overlap by a token."""
        shuffled = (self.documents[i] for i in self.order.permutation(len(self.documents)))
        stream = np.concatenate([self.rest, *([END, *document] for document in shuffled)]).astype("int32")
        rows = windows(stream, self.length)
        self.rest = stream[len(rows) * self.length :]
        return list(self.order.permutation(rows))


def windows(stream, length):
    """(n, length + 1): each row begins with the last token of the one before."""
    count = (len(stream) - 1) // length
    return np.stack([stream[i * length : (i + 1) * length + 1] for i in range(count)])


def train(RWKV, args):
    """Fit `RWKV.model`; returns Keras' history: loss every REPORT_EVERY steps, val_loss every VALIDATE_EVERY times."""
    documents = RWKV.tokenizer.encode(texts(DATA / "train.jsonl"))
    held_out = RWKV.tokenizer.encode(texts(DATA / "held_out.jsonl"))
    rows = windows(np.concatenate([[END, *document] for document in held_out]), args.length)
    rows = rows[: len(rows) // args.batch * args.batch]
    # Up in a straight line over the first twentieth, then down a cosine to a fiftieth.
    schedule = warm_up_cosine(args.learning_rate, args.steps, max(args.steps // 20, 1), args.learning_rate / 50)
    optimizer = authors_optimizer(RWKV, schedule, args.weight_decay)
    RWKV.model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return RWKV.model.fit(
        Windows(documents, args.length, args.batch, args.seed),
        epochs=args.steps // REPORT_EVERY,
        validation_data=(rows[:, :-1], rows[:, 1:]),
        validation_batch_size=args.batch,
        validation_freq=VALIDATE_EVERY,
        verbose=2,
    ).history


def plot(curve, path):
    """The loss curve as a PNG. curve: what `main` keeps of the training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    steps = np.arange(1, len(curve["loss"]) + 1) * REPORT_EVERY
    held_out = np.arange(1, len(curve["val_loss"]) + 1) * REPORT_EVERY * VALIDATE_EVERY
    axes.plot(steps, curve["loss"], label="training", linewidth=1)
    axes.plot(held_out, curve["val_loss"], "o-", label="held out", markersize=3, linewidth=1)
    axes.set(xlabel="step", ylabel="nats a token", title="The shipped model in training", ylim=(None, 6))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def build(dtype="float32"):
    tokenizer = RWKV_TOKENIZER(DATA / "vocab.txt")
    # 0 ends a document here; it is a token like any other and nothing is masked.
    return build_transformer_model(
        **SIZES, vocab_size=tokenizer.vocab_size, tokenizer=tokenizer, pad_token_id=None, dtype=dtype
    )


def export(RWKV, curve):
    """Write the preset in float16, measure what was written, and plot the training."""
    half = build("float16")
    for variable, trained in zip(half.model.variables, RWKV.model.variables, strict=True):
        variable.assign(trained)
    half.save_to_preset(OUT)
    bits = evaluate_text(type(RWKV).from_preset(OUT), texts(DATA / "held_out.jsonl")).bits_per_byte
    plot(curve, PLOT)
    print(f"{OUT}: {bits:.3f} bits per byte held out")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=750, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="rows a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens a row (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--export-only", action="store_true", help="do not train: export what was trained before")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    RWKV = build()
    weights, record = DATA / "trained.npz", DATA / "training.json"
    variables = {rule.path: RWKV.backbone.variable_at(rule.path) for rule in filled(RWKV.config.rules())}
    if args.export_only:
        with np.load(weights) as trained:
            for path, variable in variables.items():
                variable.assign(trained[path])
    else:
        start = time.time()
        curve = train(RWKV, args)
        np.savez(weights, **{path: keras.ops.convert_to_numpy(variable) for path, variable in variables.items()})
        settings = {"steps": args.steps, "batch": args.batch, "length": args.length}
        record.write_text(json.dumps({**curve, **settings, "minutes": (time.time() - start) / 60}))
    export(RWKV, json.loads(record.read_text()))


if __name__ == "__main__":
    main()
