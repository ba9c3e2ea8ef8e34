"""One small model trained twice on the same batches: begun and trained as the RWKV authors do, and as Keras does.

    python scripts/make_corpus.py
    KERAS_BACKEND=jax python scripts/compare_initial_values.py

The second begins with Keras' defaults (Glorot-uniform for every weight without a default of its own, norms 1 and 0, the
embedding within 0.05) and `keras.optimizers.AdamW`. The learning rate, its schedule, the weight decay and clipping are
those of the first. A third has the authors' values and Keras' AdamW. Writes docs/initial-values.png and prints a table.
"""

import argparse
import os
import random
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from bert4keras_rwkv.cli.backend import keep_compiled_programs
from bert4keras_rwkv.data.convert import open_documents
from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.tokenizers import load_tokenizer
from bert4keras_rwkv.training import authors_optimizer, keras_dataset, warm_up_cosine
from bert4keras_rwkv.training.fitting import mean_loss
from bert4keras_rwkv.training.plan import TrainingPlan, packed, packed_held_out, predicted

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "build/jargon"
VOCABULARY = ROOT / "bert4keras_rwkv/presets/finch-jargon/vocab.txt"
PLOT = ROOT / "docs/initial-values.png"
SIZES = {
    "model": "rwkv6",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "attention_head_size": 32,
    "intermediate_size": 320,
    "decomposer_size": 8,
    "time_decay_size": 16,
}
REPORT_EVERY = 10  # steps
RUNS = {
    "as the authors": (True, True),
    "the authors' values, Keras' AdamW": (True, False),
    "Keras' values and AdamW": (False, False),
}


def give_keras_values(rwkv):
    """Every weight as Keras' layers would begin it, if nobody said otherwise."""
    values = {"gamma": "ones", "beta": "zeros", "bias": "zeros", "embeddings": "random_uniform"}
    for seed, variable in enumerate(rwkv.backbone.variables):
        begin = keras.initializers.get(values.get(variable.name, "glorot_uniform"))
        if hasattr(begin, "seed"):
            begin = type(begin)(seed=seed)  # the same on every run
        variable.assign(begin(variable.shape, variable.dtype))


def optimizer_of(rwkv, plan, authors):
    """Theirs, or Keras' AdamW with the same learning rate, weight decay and clipping."""
    schedule = warm_up_cosine(plan.learning_rate, plan.steps, plan.warm_up)
    if authors:
        return authors_optimizer(rwkv, schedule, plan.weight_decay)
    return keras.optimizers.AdamW(schedule, weight_decay=plan.weight_decay, global_clipnorm=1.0)


def run(plan, tokenizer, batches, held_out, their_values, their_optimizer):
    """The losses of every REPORT_EVERY steps, and that of held-out text at the end, in nats a token."""
    random.seed(plan.seed)
    rwkv = build_transformer_model(**SIZES, vocab_size=tokenizer.vocab_size, packed=True, dtype="float32")
    if not their_values:
        give_keras_values(rwkv)
    model = rwkv.training_model()
    model.compile(optimizer_of(rwkv, plan, their_optimizer))
    history = model.fit(
        keras_dataset(batches),
        epochs=plan.steps // REPORT_EVERY,
        steps_per_epoch=REPORT_EVERY,
        shuffle=False,
        verbose=0,
    )
    return history.history["loss"], mean_loss(model, held_out, predicted)


def plot(curves, path):
    """The curves as a PNG. curves: name -> (losses, held-out loss)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, (losses, held_out) in curves.items():
        steps = [REPORT_EVERY * (number + 1) for number in range(len(losses))]
        axes.plot(steps, losses, label=f"{name} (held out: {held_out:.2f})", linewidth=1)
    axes.set(xlabel="step", ylabel="nats a token", title="The same small RWKV-6 on the same batches")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="rows a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="tokens a row (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=PLOT, help="the picture (default: %(default)s)")
    args = parser.parse_args()
    if keras.backend.backend() == "jax":
        keep_compiled_programs()  # compiling takes longer than training
    values = {name: getattr(args, name) for name in ("steps", "batch_size", "length", "learning_rate", "weight_decay")}
    plan = TrainingPlan(**values, seed=args.seed)
    tokenizer = load_tokenizer(VOCABULARY)
    train, held = (open_documents(DATA / f"{name}.jsonl", tokenizer) for name in ("train", "held_out"))
    batches = packed(train, plan, tokenizer.vocab_size)
    held_out = packed_held_out(held, plan, tokenizer.vocab_size)
    curves = {}
    for name, (their_values, their_optimizer) in RUNS.items():
        start = time.time()
        losses, loss = curves[name] = run(plan, tokenizer, batches, held_out, their_values, their_optimizer)
        print(f"{name}: loss {losses[-1]:.3f}, held out {loss:.3f} ({time.time() - start:.0f} s)", flush=True)
    plot(curves, args.out)


if __name__ == "__main__":
    main()
