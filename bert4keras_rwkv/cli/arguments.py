"""What each command takes. Only the standard library is loaded here."""

import argparse

from bert4keras_rwkv import __version__
from bert4keras_rwkv.cli.values import Names, Real, Whole, named_path, path, size, strategy, utf8

MODEL = "finch-jargon"  # the one that ships with the package
BACKENDS = ("jax", "tensorflow", "torch")
DTYPES = ("float32", "bfloat16", "float16")
TRAINING_DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")
KERNELS = ("auto", "ops", "native", "loop")
WRITTEN = ("preset", "pth", "safetensors", "st", "hf", "fla", "gguf")  # formats of weights
READ = (*WRITTEN, "sharded", "rwkv_cpp", "bert4keras3", "keras_hub")
BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
PEERS = ("rwkv", "llama.cpp")  # programs that `bench` can compare with
QUANTISED = ("bfloat16", "int8", "int4")
DATA_FORMS = ("jsonl", "text", "tfrecord", "binidx")

COUNT, LENGTH, ID = Whole(1), Whole(2), Whole(0)
TEXTS = Whole(1, 256)
SEED, ANY_SEED = Whole(0, 2**32 - 1), Whole(-(2**63), 2**63 - 1)
FINITE, ABOVE_0, FROM_0 = Real(), Real(0.0, above=True), Real(0.0)

# The fields of `Sampling`, with the defaults of `RWKV.generate`.
SAMPLING = {
    "temperature": (FROM_0, 1.0, "divides the logits; 0 always takes the likeliest token"),
    "top_k": (ID, None, "draw from the N likeliest tokens only; 0 for all"),
    "top_p": (Real(0.0, 1.0), 0.85, "draw from the likeliest tokens that hold this share; 0 for the likeliest"),
    "penalty": (ABOVE_0, 1.0, "for tokens of the text so far, prompt included; 1 for none"),
    "penalty_window": (COUNT, None, "the penalty looks at the last one to two windows of N tokens"),
    "presence_penalty": (FINITE, 0.0, "subtracted from the logits of tokens already written"),
    "frequency_penalty": (FINITE, 0.0, "subtracted as often as they were written"),
    "penalty_decay": (Real(0.0, 1.0), 1.0, "how those counts fade at each token"),
}

# What a chat has instead, in words: `chat.conversation` has it in numbers.
CHAT_SAMPLING = {
    "top_p": "0.3, with a state 0.2",
    "presence_penalty": "0.5, with a state 0.3",
    "frequency_penalty": "0.5, with a state 0.3",
    "penalty_decay": "0.996",
}
LANGUAGES = ("en", "zh", "ja")

# The fields of `Plan`, with what suits small models.
TRAINING = {
    "steps": (COUNT, 1000, "how many batches to train on"),
    "batch_size": (COUNT, 8, "rows of a batch"),
    "length": (LENGTH, 512, "tokens of a row"),
    "learning_rate": (ABOVE_0, 6e-4, "its peak, after the warm-up; it ends at a sixtieth"),
    "weight_decay": (FROM_0, 0.1, "of the matrices"),
    "warm_up": (Whole(0), None, "steps in which the learning rate rises (default: 10, or all but the last)"),
    "report_every": (COUNT, 50, "steps between two looks at the losses"),
    "seed": (SEED, 0, "of the random weights and of the order of the documents"),
}

# The fields of `Tuning` that are numbers.
TUNING = {
    "rank": (COUNT, 8, "of the LoRA"),
    "alpha": (ABOVE_0, None, "of the LoRA, which adds alpha / rank times its product (default: the rank)"),
    "steps": (COUNT, None, "how many batches to train on (default: 200, unless --epochs is given)"),
    "epochs": (COUNT, None, "how often to go through the data, instead of --steps"),
    "batch_size": (COUNT, 8, "rows of a batch"),
    "length": (LENGTH, 256, "tokens of a row"),
    "learning_rate": (ABOVE_0, None, "its peak (default: what suited the shipped model, see docs/tuning.md)"),
    "seed": (SEED, 0, "of the LoRA, the order of the documents, and texts that the model writes"),
}
TUNING_MODES = ("state", "lora", "state+lora", "prompt")


class UsageError(ValueError):
    """An argument with a value that cannot be, found after argparse was content."""


class Parser(argparse.ArgumentParser):
    """What is wrong is one line; how a command is used, `--help` says."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}. {self.prog} --help says more.\n")


def parser():
    """The parser of the whole command line. The chosen command is in `command`."""
    whole = Parser(
        prog="bert4keras-rwkv",
        description="RWKV language models in Keras 3: write text, train, tune, evaluate, convert weights.",
    )
    whole.add_argument("--version", action="version", version=f"bert4keras_rwkv {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _generate,
        _chat,
        _serve,
        _info,
        _convert,
        _quantize,
        _data,
        _train,
        _evaluate,
        _tune,
        _state,
        _kernels,
        _bench,
    ):
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
    command.add_argument(
        "--prompt", type=utf8, required=True, metavar="TEXT", help="what to go on from; - reads it from stdin"
    )
    _writing_model(command)
    length = command.add_mutually_exclusive_group()
    length.add_argument("--max-length", type=COUNT, metavar="N", help="tokens of prompt and text together")
    length.add_argument("--max-new-tokens", type=COUNT, metavar="N", help="tokens of the text (default: 256)")
    command.add_argument(
        "--stop", type=utf8, action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )
    command.add_argument(
        "--template",
        type=utf8,
        metavar="T",
        help="the prompt is a user's message, in this form: a name, a file, or auto",
    )
    command.add_argument("--echo", action="store_true", help="write the prompt first")
    command.add_argument(
        "--trials", type=COUNT, metavar="N", help="write N texts, the prompt being read once; each tells its seed"
    )
    command.add_argument(
        "--save-state", type=path, metavar="FILE", help="write the state after the text, for --state of another call"
    )
    command.add_argument(
        "--interactive-stop", action="store_true", help="Ctrl-C ends the text there, and what else is asked for is done"
    )
    _drawing(command)
    _running(command)
    return command


def _chat(commands):
    """`chat`: turns on stdout, in a terminal or a pipe."""
    command = commands.add_parser(
        "chat",
        help="talk with a model",
        description="Talk with a model. /help says which commands there are, ChatRWKV's among them. From a pipe each "
        "line is a message or a command, and the answers go to stdout. Completion, history and colours come with the "
        "extra [chat].",
    )
    _writing_model(command)
    form = command.add_argument_group("the conversation")
    which = form.add_mutually_exclusive_group()
    which.add_argument("--template", type=utf8, metavar="T", help="its form, by name (default: that of the model)")
    which.add_argument("--prompt", type=path, metavar="FILE", help="a form of one's own, JSON (docs/chat.md)")
    form.add_argument(
        "--lang",
        choices=LANGUAGES,
        help="ChatRWKV's conversation of two friends, or with --template what they say first",
    )
    form.add_argument("--system", type=utf8, metavar="TEXT", help="what the system says first")
    form.add_argument("--load", type=path, metavar="FILE", help="go on with a conversation that /save wrote")
    form.add_argument("--mode", type=utf8, metavar="NAME", help="of a form that has several: whether it thinks")
    form.add_argument(
        "--max-new-tokens",
        type=COUNT,
        metavar="N",
        help="tokens of a reply (default: 512), and of what +gen, +i, +qq and +qa write (default: 256)",
    )
    form.add_argument("--echo", action="store_true", help="write each message and who replies, too: for pipes")
    _drawing(command, CHAT_SAMPLING)
    running = _running(command)
    running.add_argument(
        "--chunk-len", type=COUNT, default=256, metavar="T", help="tokens that are read at once (default: %(default)s)"
    )
    return command


def _serve(commands):
    """`serve`: over HTTP."""
    command = commands.add_parser(
        "serve",
        help="answer over HTTP, in OpenAI's form",
        description="Answer many at once over HTTP, in OpenAI's form: chat completions, completions, models "
        "(docs/serving.md). It needs the extra [serve]. SIGTERM and Ctrl-C stop it when it has finished what runs.",
    )
    _model(command)
    command.add_argument("--tokenizer", type=path, metavar="FILE", help="vocabulary file (default: beside the weights)")
    command.add_argument("--adapter", type=path, metavar="FILE", help="a LoRA, as `tune` writes")
    command.add_argument(
        "--template", type=utf8, metavar="T", help="the form of conversations: a name or a file (default: the model's)"
    )
    reached = command.add_argument_group("where, and by whom")
    reached.add_argument(
        "--host", type=utf8, default="127.0.0.1", metavar="H", help="the address (default: %(default)s, this machine)"
    )
    reached.add_argument(
        "--port", type=Whole(0, 65535), default=8000, metavar="N", help="0 takes a free one (default: %(default)s)"
    )
    reached.add_argument("--api-key-file", type=path, metavar="FILE", help="keys, one a line, of which one is wanted")
    much = command.add_argument_group("how much")
    for flag, kind, default, text in (
        ("--max-batch", Whole(1, 256), 16, "answers that are written at once"),
        ("--queue", Whole(0, 2**20), 64, "answers that wait beside them, before more are refused"),
        ("--max-tokens", COUNT, 4096, "tokens of an answer at most"),
        ("--max-prompt", COUNT, 65536, "tokens of a prompt at most"),
        ("--time-limit", Whole(1, 86400), None, "seconds that an answer may take, its waiting included"),
        ("--stop-within", Whole(0, 86400), 30, "seconds to finish what runs when it is stopped"),
    ):
        said = f"{text} (default: {'no limit' if default is None else default})"
        much.add_argument(flag, type=kind, default=default, metavar="N", help=said)
    kept = command.add_argument_group("what is remembered")
    for flag, kind, letter, default, text in (
        ("--state", named_path, "NAME=FILE", None, "a state in which texts may begin, as `tune` writes; repeatable"),
        ("--cache", path, "DIR", None, "a folder for states that outlast the server (default: they do not)"),
        ("--cache-memory", size, "SIZE", "2GiB", "memory for states of what was read, 0 for none (default: 2GiB)"),
        ("--cache-disk", size, "SIZE", "20GiB", "the same on disk, in --cache (default: 20GiB)"),
        (
            "--state-key-file",
            path,
            "FILE",
            None,
            "a key that signs returned states, made if it is missing: servers "
            "that share it take them from each other (default: a key of this server alone)",
        ),
    ):
        action = {"action": "append", "dest": "states"} if flag == "--state" else {}
        kept.add_argument(flag, type=kind, default=default, metavar=letter, help=text, **action)
    kept.add_argument(
        "--cache-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the cache keeps states in; bfloat16 takes half the room, and rounds (default: %(default)s)",
    )
    _running(command)
    return command


def _writing_model(command):
    """What writes: model, vocabulary, state, adapter, seed."""
    _model(command)
    command.add_argument("--tokenizer", type=path, metavar="FILE", help="vocabulary file (default: beside the weights)")
    command.add_argument("--seed", type=ANY_SEED, metavar="N", help="the same seed writes the same text")
    command.add_argument(
        "--state", type=path, metavar="FILE", help="a state to begin in, as `tune` and other programs write"
    )
    command.add_argument(
        "--adapter", type=path, metavar="FILE", help="a LoRA, with a state or without, as `tune` writes"
    )


def _drawing(command, chat=None):
    """The fields of `Sampling`. chat: what its help says of some; whatever is not given is None then."""
    drawing = command.add_argument_group("how the next token is drawn")
    for name, (kind, default, text) in SAMPLING.items():
        shown = "" if default is None else f" (default: {default})"
        if chat:
            default, shown = None, f" (default: {chat[name]})" if name in chat else shown
        drawing.add_argument(_flag(name), type=kind, default=default, metavar=_letter(kind), help=text + shown)
    drawing.add_argument(
        "--max-penalty-range",
        type=COUNT,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="penalise tokens seen LOW times or more, as often as they were seen but at most HIGH times",
    )
    drawing.add_argument("--penalty-free", type=ID, nargs="+", default=(), metavar="ID", help="ids that add no count")
    drawing.add_argument("--mask-output", type=ID, nargs="+", default=(), metavar="ID", help="ids never written")
    drawing.add_argument("--temperature-after", action="store_true", help="apply it after top-k and top-p")
    drawing.add_argument(
        "--newline-schedule",
        action="store_true",
        help="a soft length, as in ChatRWKV: line feeds are unlikely at first, and likely after 150 tokens",
    )
    drawing.add_argument(
        "--no-repeat-marks", action="store_true", help="never twice in a row the same of ，：？！, as in ChatRWKV"
    )


def _info(commands):
    """`info`: what a file holds."""
    command = commands.add_parser(
        "info",
        help="tell what a weight file holds",
        description="Version, sizes and memory, without loading the weights; with --strategy what would go where.",
    )
    command.add_argument("file", type=path, metavar="FILE", help="weight file, preset folder or shipped model")
    command.add_argument("--json", action="store_true", help="for programs")
    _format_of_source(command)
    _strategy(_engine(command))
    return command


def _convert(commands):
    """`convert`: one format into another."""
    command = commands.add_parser(
        "convert",
        help="write weights in another format",
        description="Convert weights tensor by tensor. DST appears only when it is whole. Its suffix says the format; "
        "without one it is a preset folder.",
    )
    command.add_argument("source", type=path, metavar="SRC", help="weight file, folder or shipped model")
    command.add_argument(
        "target", type=path, metavar="DST", help="what to write: NAME.pth, NAME.safetensors, a folder, ..."
    )
    command.add_argument(
        "--to", metavar="FORMAT", help=f"the format of DST: {_listed(WRITTEN)} (default: by its suffix)"
    )
    _format_of_source(command)
    command.add_argument(
        "--dtype",
        metavar="D",
        help=f"cast to {_listed(DTYPES)}; in a .gguf also {_listed(BLOCKS)} (default: as they are; .st: float16)",
    )
    merging = command.add_argument_group("an adapter, merged on the way")
    merging.add_argument("--lora", type=path, metavar="FILE", help="a LoRA, PiSSA, DiSHA, Bone or Bat for SRC")
    merging.add_argument(
        "--alpha", type=ABOVE_0, metavar="X", help="of a LoRA, whose file does not say it (default: 32)"
    )
    merging.add_argument("--lora-base", type=path, metavar="FILE", help="of a PiSSA: the file of its initial factors")
    command.add_argument(
        "--check", action="store_true", help="run both on random tokens, block by block, and compare the logits"
    )
    return command


def _quantize(commands):
    """`quantize`: fewer bytes for a number."""
    command = commands.add_parser(
        "quantize",
        help="store a model in fewer bytes",
        description="Store the matrices of a model in fewer bytes, as a preset folder, which loads as it is. With "
        "--calibrate errors weigh as much as what the matrices multiply in texts like yours, a few pages of which do.",
    )
    command.add_argument("model", type=path, metavar="MODEL", help="weight file, preset folder or shipped model")
    command.add_argument("out", type=path, metavar="OUT", help="the preset folder to write")
    command.add_argument("--to", choices=QUANTISED, default="int8", help="bits of a number (default: %(default)s)")
    command.add_argument(
        "--tokenizer", type=path, metavar="FILE", help="vocabulary file, preset or `world` (default: the model's)"
    )
    calibrating = command.add_argument_group("calibration")
    calibrating.add_argument("--calibrate", type=path, metavar="FILE", help="texts, in any form of `data`")
    calibrating.add_argument(
        "--compensate", action="store_true", help="columns make up for each other's errors; takes longer"
    )
    _form_of_data(calibrating, "the texts")
    _running(command, with_strategy=False)
    return command


def _data(commands):
    """`data`: a data set in another form."""
    command = commands.add_parser(
        "data",
        help="write texts or token ids as a data set for training",
        description='Convert between JSON lines (.jsonl: {"text": ...} or {"messages": [...]}), plain text (.txt), '
        "TFRecord (.tfrecord) and binidx (.bin with .idx). DST appears only when it is whole.",
    )
    command.add_argument("source", type=path, metavar="SRC", help="a file, or a folder with files of one form")
    command.add_argument("target", type=path, metavar="DST", help="what to write; its suffix says the form")
    command.add_argument(
        "--tokenizer", type=path, metavar="FILE", help="between text and ids: a vocabulary file, a preset, or `world`"
    )
    command.add_argument("--from", dest="format", choices=DATA_FORMS, help="the form of SRC (default: by its suffix)")
    command.add_argument("--to", choices=DATA_FORMS, help="the form of DST (default: by its suffix)")
    command.add_argument(
        "--separator", type=utf8, metavar="LINE", help="of plain text: the line that stands between documents"
    )
    command.add_argument(
        "--workers", type=COUNT, metavar="N", help="processes that encode (default: one a core, 1 below 64 MB)"
    )
    return command


def _train(commands):
    """`train`: from a configuration and data to a preset folder."""
    command = commands.add_parser(
        "train",
        help="train a model from scratch, or train one on",
        description="Train a model as the RWKV authors do and write it to a preset folder. Started again after it was "
        "stopped, it goes on from its last checkpoint. Losses are told on stderr and in FOLDER/training/losses.csv.",
    )
    command.add_argument("config", metavar="CONFIG", help="a config JSON for random weights; else a model to train on")
    command.add_argument(
        "data", type=path, metavar="DATA", help="what to train on: a file, or a folder with files of one form"
    )
    command.add_argument("--out", required=True, type=path, metavar="FOLDER", help="the preset folder to write")
    command.add_argument(
        "--tokenizer",
        type=path,
        metavar="FILE",
        help="a vocabulary file, a preset, or `world` (default: that of the model)",
    )
    command.add_argument(
        "--held-out", type=path, metavar="FILE", help="data that is not trained on, to look at the loss of"
    )
    _form_of_data(command, "DATA")
    plan = command.add_argument_group("how it is trained")
    for name, (kind, default, text) in TRAINING.items():
        shown = "" if default is None else f" (default: {default})"
        plan.add_argument(_flag(name), type=kind, default=default, metavar=_letter(kind), help=text + shown)
    running = _training(command)
    running.add_argument(
        "--save-every", type=COUNT, default=200, metavar="N", help="steps between checkpoints (default: %(default)s)"
    )
    return command


def _evaluate(commands):
    """`evaluate`: how well a model predicts a file."""
    command = commands.add_parser(
        "evaluate",
        help="tell how well a model predicts texts",
        description="Perplexity and bits per byte of documents (.jsonl, .txt, .tfrecord, .bin with .idx; of "
        "conversations only answers count), or how often a model writes the last word of LAMBADA's passages.",
    )
    command.add_argument("file", type=path, metavar="FILE", help="a data set in any form of `data`, or LAMBADA's JSONL")
    command.add_argument("--task", choices=("text", "lambada"), default="text", help="default: %(default)s")
    _model(command)
    command.add_argument(
        "--tokenizer", type=path, metavar="FILE", help="vocabulary file, preset or `world` (default: the model's)"
    )
    command.add_argument(
        "--adapter", type=path, metavar="FILE", help="LoRA or tuned state that `RWKV.save_adapter` wrote"
    )
    command.add_argument("--state", type=path, metavar="FILE", help="the state in which every text begins")
    command.add_argument("--json", action="store_true", help="for programs")
    reading = command.add_argument_group("what is read")
    _form_of_data(reading, "FILE")
    reading.add_argument("--limit", type=COUNT, metavar="N", help="only the first N documents or passages")
    reading.add_argument(
        "--begin",
        choices=("auto", "end", "nothing"),
        default="auto",
        help="what stands before a document: the end token, so that its first token counts, or nothing "
        "(default: the end token, but nothing with a state)",
    )
    reading.add_argument("--no-end", action="store_true", help="do not count the end token behind a document")
    running = _running(command)
    running.add_argument(
        "--batch-size", type=COUNT, default=8, metavar="B", help="texts at once (default: %(default)s)"
    )
    running.add_argument(
        "--chunk-length", type=COUNT, default=256, metavar="T", help="tokens of each at once (default: %(default)s)"
    )
    return command


def _running(command, with_strategy=True):
    """How a model runs. with_strategy: else `--strategy` is refused, and None. Returns the group of arguments."""
    running = _engine(command)
    numbers = running.add_mutually_exclusive_group()
    numbers.add_argument("--dtype", choices=DTYPES, help="what is computed with (default: what suits device and file)")
    if with_strategy:
        _strategy(numbers)
    else:
        command.set_defaults(strategy=None)
    running.add_argument(
        "--kernel", default="auto", metavar="K", help=f"form of the recurrence: {_listed(KERNELS)} (default: auto)"
    )
    return running


def _strategy(group, said="", **options):
    """`--strategy`. said: the end of its help."""
    text = "which blocks are computed where, in which dtype, and stored how: 'cuda fp16i8 *20 -> cpu fp32', 'auto'"
    group.add_argument("--strategy", type=strategy, metavar="S", help=text + said, **options)


def _training(command):
    """How a model trains. Returns the group of arguments."""
    running = _engine(command)
    running.add_argument(
        "--dtype", choices=TRAINING_DTYPES, default="float32", help="what is computed with (default: %(default)s)"
    )
    running.add_argument(
        "--remat", action="store_true", help="compute blocks twice instead of keeping what they compute"
    )
    return running


def _engine(command):
    """The group of arguments about running, with `--backend`."""
    running = command.add_argument_group("how it runs")
    running.add_argument(
        "--backend", dest="engine", choices=BACKENDS, help="what Keras runs on (default: KERAS_BACKEND, else jax)"
    )
    return running


def _tune(commands):
    """`tune`: a state, a LoRA, both, or a prompt as a state."""
    command = commands.add_parser(
        "tune",
        help="tune a state or a LoRA on texts, or turn a prompt into a state",
        description="Tune a small part of a model, and write it to a file for `generate --state` or `generate "
        "--adapter`. The loss of held-out documents is shown before and after. Started again after it was stopped, the "
        "same command goes on.",
    )
    _model(command)
    command.add_argument("--mode", choices=TUNING_MODES, default="state", help="what is tuned (default: %(default)s)")
    command.add_argument(
        "--data", type=path, metavar="FILE", help="what to train on, of any form; a prompt can do without"
    )
    command.add_argument(
        "--out",
        required=True,
        type=path,
        metavar="FILE",
        help="a state: NAME.pth, .st or other; with a LoRA .safetensors or .pth",
    )
    command.add_argument(
        "--held-out", type=path, metavar="FILE", help="data to measure with (default: a tenth of the documents)"
    )
    command.add_argument(
        "--tokenizer", type=path, metavar="FILE", help="a vocabulary file, a preset, or `world` (default: the model's)"
    )
    _form_of_data(command, "the data")
    tuned = command.add_argument_group("what is tuned")
    tuned.add_argument("--time-shift", action="store_true", help="the last inputs of the layers, with the state")
    tuned.add_argument("--targets", nargs="+", metavar="NAME", help="projections with a LoRA (default: all in blocks)")
    tuned.add_argument(
        "--prompt",
        type=utf8,
        action="append",
        default=[],
        metavar="TEXT",
        help="of mode prompt, or a file with it; repeatable",
    )
    tuned.add_argument("--quantize", choices=("int8", "int4"), help="store the matrices under it in fewer bytes")
    for name, (kind, default, text) in TUNING.items():
        shown = "" if default is None else f" (default: {default})"
        tuned.add_argument(_flag(name), type=kind, default=default, metavar=_letter(kind), help=text + shown)
    _training(command)
    return command


def _state(commands):
    """`state`: state files, averaged or in another form."""
    command = commands.add_parser(
        "state",
        help="average state files, or write one in another form",
        description="Write the weighted average of state files, or one of them, as .pth (RWKV-LM, RWKV-PEFT), .st "
        "(web-rwkv, Ai00) or, under any other suffix, in full.",
    )
    command.add_argument("sources", nargs="+", type=path, metavar="FILE", help="states of one model, in any form")
    command.add_argument("--out", required=True, type=path, metavar="FILE", help="the file to write")
    command.add_argument("--weights", nargs="+", type=FROM_0, metavar="W", help="one a file (default: all the same)")
    command.add_argument("--model", type=path, default=MODEL, metavar="M", help="whose they are (default: %(default)s)")
    command.add_argument("--drop-shift", action="store_true", help="lose the last inputs: .pth and .st hold none")
    return command


def _kernels(commands):
    """`kernels`: what native kernels there are, and whether they are right."""
    command = commands.add_parser(
        "kernels",
        help="show the native kernels of this machine, build or check them",
        description="Show which native kernels run the recurrences on this machine, or why none does. They are built "
        "when they are first used, which takes up to half a minute, and kept.",
    )
    command.add_argument("--build", action="store_true", help="build them again now")
    command.add_argument(
        "--check", action="store_true", help="compare each with the plain loop: outputs, gradients, masks, resets"
    )
    command.add_argument(
        "--clear", action="store_true", help="remove all that were built, before what else is asked for"
    )
    _engine(command)
    return command


def _bench(commands):
    """`bench`: how fast a model runs here."""
    command = commands.add_parser(
        "bench",
        help="measure how fast a model runs on this machine",
        description="Tokens a second of reading and of writing, time to load and memory, with each strategy, beside "
        "other programs and what the machine allows. Each program is a process; they are asked in turn.",
    )
    _model(command)
    _strategy(command, action="append", default=[], said="; repeatable (default: auto)")
    command.add_argument(
        "--compare",
        type=Names(PEERS),
        default=(),
        metavar="P",
        help=f"other programs, with what is nearest to each strategy: {','.join(PEERS)}",
    )
    asked = command.add_argument_group("what is measured")
    for name, default, text in (
        ("prompt", 512, "tokens that are read at once"),
        ("decode", 32, "tokens that are written one by one"),
        ("rounds", 5, "how often all of it is measured"),
    ):
        asked.add_argument(f"--{name}", type=COUNT, default=default, metavar="N", help=f"{text} (default: {default})")
    asked.add_argument(
        "--texts", type=TEXTS, nargs="+", default=(), metavar="N", help="also so many texts side by side"
    )
    told = command.add_argument_group("what is told")
    told.add_argument("--json", type=path, metavar="FILE", help="all of it for programs; - instead of the table")
    told.add_argument("--plot", type=path, metavar="FILE", help="a picture: .png, .svg or .pdf; needs matplotlib")
    running = _engine(command)
    running.add_argument(
        "--threads", type=COUNT, metavar="N", help="of each program (default: as each does; one a core)"
    )
    return command


def _model(command):
    """`--model`."""
    command.add_argument(
        "--model",
        type=path,
        default=MODEL,
        metavar="M",
        help="weight file, preset folder or shipped model (default: %(default)s)",
    )


def _form_of_data(command, name):
    """`--from` and `--separator`, about documents."""
    command.add_argument(
        "--from", dest="format", choices=DATA_FORMS, help=f"the form of {name} (default: by its suffix)"
    )
    command.add_argument(
        "--separator", type=utf8, metavar="LINE", help="of plain text: the line that stands between documents"
    )


def _format_of_source(command):
    """`--from`, for files that do not tell what they are."""
    command.add_argument(
        "--from", dest="format", metavar="FORMAT", help=f"the format of a file that does not say it: {_listed(READ)}"
    )


def _flag(name):
    return "--" + name.replace("_", "-")


def _letter(kind):
    """What stands for a value in the help: N for a whole number, X for any other."""
    return "N" if isinstance(kind, Whole) else "X"


def _listed(names):
    return f"{', '.join(names[:-1])} or {names[-1]}"
