"""What each command takes. Only the standard library is loaded here."""

import argparse

from bert4keras_rwkv import __version__

MODEL = "finch-jargon"  # the one that ships with the package
BACKENDS = ("jax", "tensorflow", "torch")
DTYPES = ("float32", "bfloat16", "float16")
DATA_FORMS = ("jsonl", "text", "tfrecord", "binidx")

# The fields of `Sampling`, with the defaults of `RWKV.generate`.
SAMPLING = {
    "temperature": (float, 1.0, "divides the logits; 0 always takes the likeliest token"),
    "top_k": (int, None, "draw from the K likeliest tokens only"),
    "top_p": (float, 0.85, "draw from the likeliest tokens that hold this share of the probability"),
    "penalty": (float, 1.0, "for tokens of the text so far, prompt included; 1 for none"),
    "penalty_window": (int, None, "the penalty looks at the last one to two windows of W tokens"),
    "presence_penalty": (float, 0.0, "subtracted from the logits of tokens already written"),
    "frequency_penalty": (float, 0.0, "subtracted as often as they were written"),
    "penalty_decay": (float, 1.0, "how those counts fade at each token"),
}


class UsageError(ValueError):
    """An argument with a value that cannot be, found after argparse was content."""


def parser():
    """The parser of the whole command line. The chosen command is in `command`."""
    whole = argparse.ArgumentParser(
        prog="bert4keras-rwkv",
        description="RWKV language models in Keras 3: write text, look at weights, convert them.",
    )
    whole.add_argument("--version", action="version", version=f"bert4keras_rwkv {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_generate, _info, _convert, _data):
        command = add(commands)
        command.add_argument("--debug", action="store_true", help="show where an error came from")
    return whole


def _generate(commands):
    """`generate`: text on stdout as it is written."""
    command = commands.add_parser(
        "generate",
        help="write on from a prompt",
        description="Write on from a prompt, to stdout as it is written. "
        "The last line on stderr says how many tokens and how fast.",
    )
    command.add_argument("--prompt", required=True, metavar="TEXT", help="what to go on from; - reads it from stdin")
    command.add_argument(
        "--model", default=MODEL, metavar="M", help="weight file, preset folder or shipped model (default: %(default)s)"
    )
    command.add_argument("--tokenizer", metavar="FILE", help="vocabulary file (default: beside the weights)")
    command.add_argument("--max-length", type=int, metavar="N", help="tokens of prompt and text together")
    command.add_argument("--seed", type=int, metavar="N", help="the same seed writes the same text")
    command.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    command.add_argument("--echo", action="store_true", help="write the prompt first")
    drawing = command.add_argument_group("how the next token is drawn")
    for name, (kind, default, text) in SAMPLING.items():
        shown = "" if default is None else f" (default: {default})"
        drawing.add_argument(_flag(name), type=kind, default=default, metavar=name[0].upper(), help=text + shown)
    drawing.add_argument(
        "--max-penalty-range",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="penalise tokens seen LOW times or more, as often as they were seen but at most HIGH times",
    )
    drawing.add_argument("--penalty-free", type=int, nargs="+", default=(), metavar="ID", help="ids that add no count")
    drawing.add_argument("--mask-output", type=int, nargs="+", default=(), metavar="ID", help="ids never written")
    drawing.add_argument("--temperature-after", action="store_true", help="apply it after top-k and top-p")
    running = command.add_argument_group("how it runs")
    running.add_argument(
        "--backend", dest="engine", choices=BACKENDS, help="what Keras runs on (default: KERAS_BACKEND, else jax)"
    )
    running.add_argument("--dtype", choices=DTYPES, help="what is computed with (default: what suits the device)")
    running.add_argument("--kernel", default="auto", metavar="K", help="form of the recurrence (default: %(default)s)")
    return command


def _info(commands):
    """`info`: what a file holds."""
    command = commands.add_parser(
        "info",
        help="tell what a weight file holds",
        description="Version, sizes and memory, without loading the weights.",
    )
    command.add_argument("file", metavar="FILE", help="weight file, preset folder or shipped model")
    command.add_argument("--json", action="store_true", help="for programs")
    _format_of_source(command)
    return command


def _convert(commands):
    """`convert`: one format into another."""
    command = commands.add_parser(
        "convert",
        help="write weights in another format",
        description="Convert weights tensor by tensor. DST appears only when it is whole. Its suffix says the format; "
        "without one it is a preset folder.",
    )
    command.add_argument("source", metavar="SRC", help="weight file, folder or shipped model")
    command.add_argument("target", metavar="DST", help="what to write: NAME.pth, NAME.safetensors, a folder, ...")
    command.add_argument(
        "--to", metavar="FORMAT", help="the format of DST, as hf and fla for folders of other projects"
    )
    _format_of_source(command)
    command.add_argument("--dtype", metavar="D", help="cast to this (default: as they are; .st: float16)")
    merging = command.add_argument_group("an adapter, merged on the way")
    merging.add_argument("--lora", metavar="FILE", help="a LoRA, PiSSA, DiSHA, Bone or Bat for SRC")
    merging.add_argument(
        "--alpha", type=float, default=32.0, metavar="A", help="of a LoRA, whose file does not say it (default: 32)"
    )
    merging.add_argument("--lora-base", metavar="FILE", help="of a PiSSA: the file of its initial factors")
    command.add_argument(
        "--check", action="store_true", help="run both on random tokens, block by block, and compare the logits"
    )
    return command


def _data(commands):
    """`data`: a data set in another form."""
    command = commands.add_parser(
        "data",
        help="write texts or token ids as a data set for training",
        description='Convert between JSON lines (.jsonl: {"text": ...} or {"messages": [...]}), plain text (.txt), '
        "TFRecord (.tfrecord) and binidx (.bin with .idx). DST appears only when it is whole.",
    )
    command.add_argument("source", metavar="SRC", help="a file, or a folder with files of one form")
    command.add_argument("target", metavar="DST", help="what to write; its suffix says the form")
    command.add_argument(
        "--tokenizer", metavar="FILE", help="between text and ids: a vocabulary file, a preset, or `world`"
    )
    command.add_argument("--from", dest="format", choices=DATA_FORMS, help="the form of SRC (default: by its suffix)")
    command.add_argument("--to", choices=DATA_FORMS, help="the form of DST (default: by its suffix)")
    command.add_argument("--separator", metavar="LINE", help="of plain text: the line that stands between documents")
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that encode (default: one a core, 1 below 64 MB)"
    )
    return command


def _format_of_source(command):
    """`--from`, for files that do not tell what they are."""
    command.add_argument("--from", dest="format", metavar="FORMAT", help="the format of a file that does not say it")


def _flag(name):
    return "--" + name.replace("_", "-")
