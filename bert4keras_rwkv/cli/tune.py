"""`tune`: from texts, or a prompt, to a state or an adapter."""

import sys
from pathlib import Path

from bert4keras_rwkv.atomic import check_file
from bert4keras_rwkv.cli.arguments import TUNING, UsageError
from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.cli.data import named_tokenizer
from bert4keras_rwkv.cli.progress import Bar
from bert4keras_rwkv.data.convert import files_of, kind_of, open_documents
from bert4keras_rwkv.training.plan import Tuning
from bert4keras_rwkv.weights.checkpoint import named

STEPS = 200  # where neither --steps nor --epochs says it


def run(arguments):
    """Tune, say the loss of held-out documents before and after, and write the file."""
    path, out = named(arguments.model), Path(arguments.out)
    prompts = tuple(map(_prompt, arguments.prompt))
    if arguments.data is None and arguments.mode != "prompt":
        raise UsageError(f"--mode {arguments.mode} needs --data.")
    check_file(out)  # before seconds go by with loading a backend, and hours with training
    for source in filter(None, (arguments.data, arguments.held_out)):
        files_of(source, kind_of(source, arguments.format))
    plan = _plan(arguments, prompts)
    tokenizer = None if arguments.tokenizer is None else named_tokenizer(arguments.tokenizer)
    choose_engine(arguments.engine)
    from bert4keras_rwkv.models import RWKV
    from bert4keras_rwkv.training.tune import check_target, tune

    check_target(plan, out)
    options = {"dtype": arguments.dtype, "remat": arguments.remat, "quantization": plan.quantize}
    rwkv = RWKV.from_preset(path, tokenizer=tokenizer, packed=True, **options)
    documents, held_out = (_documents(source, arguments, rwkv) for source in (arguments.data, arguments.held_out))
    found = tune(rwkv, plan, out, documents, held_out, _say)
    what = "divergence from the prompt" if plan.mode == "prompt" else "loss"
    print(f"Held-out {what}, nats a token: {found.before:.4f} before, {found.after:.4f} after")
    print(f"Wrote {out}")


def _plan(arguments, prompts):
    """The `Tuning` that the options describe."""
    numbers = {name: getattr(arguments, name) for name in TUNING if name not in ("steps", "epochs")}
    steps, epochs = arguments.steps, arguments.epochs
    if steps is not None and epochs is not None:
        raise UsageError("--steps and --epochs say the same. Give one of them.")
    try:
        return Tuning(
            mode=arguments.mode,
            time_shift=arguments.time_shift,
            targets=None if arguments.targets is None else tuple(arguments.targets),
            prompts=prompts,
            quantize=arguments.quantize,
            steps=STEPS if steps is None and epochs is None else steps,
            epochs=1 if epochs is None else epochs,
            **numbers,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _prompt(given):
    """The text itself, or that of the file of this name."""
    path = Path(given)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long for a name, or no name at all
        there = False
    try:
        text = path.read_text("utf-8") if there else given
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt: '{path}' is no text in UTF-8: {error}.") from error
    if not text:
        raise UsageError("A --prompt is empty. Give it at least one character.")
    return text


def _documents(source, arguments, rwkv):
    """The documents of a data set, or None."""
    if source is None:
        return None
    with Bar(Path(source).name, "B") as progress:
        documents = open_documents(source, rwkv.tokenizer, arguments.format, arguments.separator, progress=progress)
    if not len(documents):
        raise ValueError(f"'{source}' holds no document, or none that is not empty.")
    return documents


def _say(share, loss):
    print(f"{share:.0%}: loss {loss:.4f}", file=sys.stderr)
