"""Which learning rates suit the shipped model: where `bert4keras_rwkv/training/learning_rates.py` has its numbers from.

    KERAS_BACKEND=jax python scripts/find_learning_rates.py
    KERAS_BACKEND=jax python scripts/find_learning_rates.py --check

The first makes a range test for each kind of tuning (`callbacks.LearningRateFinder`), writes its picture to
build/learning_rates and prints what it suggests. The second trains each kind for some steps with rates around the
constant and prints the held-out loss after each. The text is this package's guide, which the shipped model has never
read: the documents in docs, one in four held out.
"""

import argparse
import os
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from bert4keras_rwkv.models.rwkv import RWKV
from bert4keras_rwkv.training import PackedBatches, keras_dataset, learning_rates
from bert4keras_rwkv.training.callbacks import LearningRateFinder

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build/learning_rates"
KINDS = {
    "STATE": lambda model: model.enable_state_tuning(),
    "STATE_AND_SHIFTS": lambda model: model.enable_state_tuning(time_shift_tuning=True),
    "LORA": lambda model: model.enable_lora(8),
    "STATE_AND_LORA": lambda model: (model.enable_state_tuning(), model.enable_lora(8)),
    "FULL": lambda model: None,
}
LENGTH, BATCH = 128, 4


def paragraphs():
    """(for training, held out): the paragraphs of the guide, in English."""
    found = [part for path in sorted((ROOT / "docs").glob("*.md")) for part in path.read_text("utf-8").split("\n\n")]
    return [part for n, part in enumerate(found) if n % 4], found[::4]


def prepared(kind):
    """The shipped model, to be tuned in this way, and its batches for training and for the held-out loss."""
    keras.utils.set_random_seed(0)
    model = RWKV.from_preset("finch-jargon", packed=True)
    KINDS[kind](model)
    train, held_out = (
        PackedBatches(model.tokenizer.encode(part), LENGTH, BATCH, seed=seed)
        for part, seed in zip(paragraphs(), (0, None), strict=True)
    )
    return model.training_model(), train, held_out


def optimizer(rate):
    return keras.optimizers.Adam(rate, beta_2=0.99, global_clipnorm=1.0)


def find(kind, steps):
    """Print the suggestion of a range test and draw it."""
    model, train, _ = prepared(kind)
    model.compile(optimizer(1e-3))
    finder = LearningRateFinder(1e-5, 10.0, steps=steps)
    model.fit(keras_dataset(train), steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[finder])
    finder.plot(OUT / f"{kind.lower()}.png")
    lowest = np.nanmin(finder.smoothed)
    print(f"{kind}: {finder.suggestion:.1e} (loss {finder.smoothed[0]:.2f}, lowest {lowest:.2f})", flush=True)


def check(kind, steps):
    """Print the held-out loss after training with rates around the constant, those after a tenth of it falling off."""
    model, train, held_out = prepared(kind)
    model.compile(optimizer(1e-3))
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    begin = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]

    def loss():
        return model.evaluate(keras_dataset(held_out), steps=len(held_out), verbose=0)

    print(f"{kind}: {loss():.3f} before", end="", flush=True)
    constant = getattr(learning_rates, kind)
    for factor in (0.1, 0.3, 1, 3, 10):
        for variable, value in zip(variables, begin, strict=True):
            variable.assign(value)
        model.optimizer.learning_rate = constant * factor
        model.fit(keras_dataset(train), steps_per_epoch=steps, shuffle=False, verbose=0)
        print(f"; {constant * factor:.0e}: {loss():.3f}", end="", flush=True)
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="train with rates around the constants")
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for kind in args.kinds:
        (check if args.check else find)(kind, args.steps)


if __name__ == "__main__":
    main()
