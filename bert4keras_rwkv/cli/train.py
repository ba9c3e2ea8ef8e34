"""`train`: from a configuration, or a model, and data to a preset folder."""

import random
import sys
from pathlib import Path

from bert4keras_rwkv.cli.arguments import TRAINING, UsageError
from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.cli.data import named_tokenizer
from bert4keras_rwkv.cli.progress import Bar
from bert4keras_rwkv.data.convert import files_of, kind_of, open_documents
from bert4keras_rwkv.training.folder import Folder, check_place
from bert4keras_rwkv.training.plan import TrainingPlan, check_vocabulary, packed, packed_held_out, settings_of
from bert4keras_rwkv.weights.checkpoint import named

WARM_UP = 10  # steps, where --warm-up does not say it


def run(arguments):
    """Train, say how it goes on stderr, and write the preset; or go on where the same command was stopped."""
    plan = chosen_plan(arguments)
    check_place(arguments.out)  # before hours go by with training
    for source in filter(None, (arguments.data, arguments.held_out)):
        files_of(source, kind_of(source, arguments.format))
    tokenizer = None if arguments.tokenizer is None else named_tokenizer(arguments.tokenizer)
    rwkv = model(arguments, tokenizer)
    check_vocabulary(rwkv.tokenizer, rwkv.config.vocab_size)
    batches, held_out = data(arguments, plan, rwkv)
    folder = Folder(arguments.out, settings_of(rwkv, batches, plan))
    if not folder.open():
        print(f"{arguments.out} is trained already: {_told(*list(folder.losses().items())[-1])}")
        return
    from bert4keras_rwkv.training.pretrain import train

    print(_beginning(rwkv, batches, plan), file=sys.stderr)
    losses = train(rwkv, batches, plan, folder, held_out, arguments.save_every, lambda *row: _say(plan, *row))
    print(f"Wrote {arguments.out}: {_told(*list(losses.items())[-1])}")


def chosen_plan(arguments):
    """The `TrainingPlan` that the options describe."""
    numbers = {name: getattr(arguments, name) for name in TRAINING}
    if arguments.warm_up is None:
        numbers["warm_up"] = min(WARM_UP, arguments.steps - 1)
    try:
        return TrainingPlan(**numbers)
    except ValueError as error:
        raise UsageError(str(error)) from error


def model(arguments, tokenizer):
    """The `RWKV` to train, on the backend that was asked for: of a config JSON with random weights, else a model."""
    path = Path(named(arguments.config))
    scratch = path.is_file() and path.suffix == ".json" and not path.name.endswith((".index.json", ".weights.json"))
    choose_engine(arguments.engine)
    from bert4keras_rwkv.models import build_transformer_model

    random.seed(arguments.seed)  # what initial values are drawn by; Keras' own function would load every backend
    source = {"config_path" if scratch else "checkpoint_path": path}
    return build_transformer_model(
        **source, tokenizer=tokenizer, packed=True, dtype=arguments.dtype, remat=arguments.remat
    )


def data(arguments, plan, rwkv):
    """The batches to train on, and the held-out ones or None."""

    def documents(source):
        with Bar(Path(source).name, "B") as progress:
            return open_documents(source, rwkv.tokenizer, arguments.format, arguments.separator, progress=progress)

    batches = packed(documents(arguments.data), plan, rwkv.config.vocab_size)
    if arguments.held_out is None:
        return batches, None
    try:
        return batches, packed_held_out(documents(arguments.held_out), plan, rwkv.config.vocab_size)
    except ValueError as error:
        raise ValueError(f"--held-out: {error}") from error


def _beginning(rwkv, batches, plan):
    tokens = plan.steps * plan.batch_size * plan.length
    passes = plan.steps / len(batches)
    return (
        f"{rwkv.config.model}, {rwkv.model.count_params():,} parameters; {tokens:,} tokens, {passes:.2g} times the data"
    )


def _say(plan, step, loss, held_out, tokens_per_second):
    print(f"{_told(step, (loss, held_out))}, of {plan.steps} steps, {tokens_per_second:,.0f} tokens/s", file=sys.stderr)


def _told(step, losses):
    """`step 50: loss 3.214, held out 3.402`."""
    loss, held_out = losses
    return f"step {step}: loss {loss:.3f}" + ("" if held_out is None else f", held out {held_out:.3f}")
