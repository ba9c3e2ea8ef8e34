"""Which programs are measured: this package with a strategy, and others with what is nearest to it."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.evaluation.speed.settings import Settings
from bert4keras_rwkv.strategy import Strategy
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.weights.checkpoint import named, open_checkpoint
from bert4keras_rwkv.weights.formats.registry import format_named
from bert4keras_rwkv.weights.loading import in_order
from bert4keras_rwkv.weights.tensors import count

PEERS = ("rwkv", "llama.cpp")
OURS = "bert4keras_rwkv"
OURS_MODULE = f"{__package__}.ours"  # the module that is run for this package
# (dtype, stored) of a strategy -> llama.cpp's name of it, and the dtype of `convert`.
GGUF = {
    ("float32", None): ("F32", "float32"),
    ("float16", None): ("F16", "float16"),
    ("bfloat16", None): ("BF16", "bfloat16"),
    ("float32", "int8"): ("Q8_0", "q8_0"),
    ("float32", "int4"): ("Q4_0", "q4_0"),
}


@dataclass(frozen=True)
class Program:
    """A program to be measured. module: what is run as a process, with options. commands: what it can be asked."""

    name: str
    label: str
    strategy: str
    module: str
    options: dict
    commands: tuple


@dataclass(frozen=True)
class Subject:
    """The model that is measured.

    given: its name, as the user has it. path: of its weights. config: `RWKVConfig`. format: the name of the file's.
    parameters: numbers of its weights; products: those of the blocks' matrices, by each of which a token is multiplied.
    """

    given: str
    path: Path
    config: RWKVConfig
    format: str
    parameters: int
    products: int

    @classmethod
    def of(cls, model):
        """That of a weight file, preset folder or shipped model. Errors as for `open_weights`."""
        path = named(model)
        with open_checkpoint(path) as checkpoint:
            shapes = checkpoint.tensors.shapes
            matrices = [shape for name, shape in shapes.items() if name.startswith("blocks.") and _is_matrix(shape)]
            sizes = sum(map(count, shapes.values())), sum(map(count, matrices))
            return cls(str(model), path, checkpoint.config, checkpoint.format.name, *sizes)

    def written(self, folder, format, dtype=None):
        """The path of its weights in a format, in a folder, where they are written if they are not there yet."""
        known = format_named(format)
        target = Path(folder, f"{dtype or 'model'}{known.suffix}")
        with open_checkpoint(self.path) as checkpoint:
            if format == self.format and dtype is None and checkpoint.path.is_file():
                if not target.exists():
                    os.symlink(checkpoint.path.resolve(), target)
            elif not target.exists():
                tensors = in_order(self.config.rules(), checkpoint.tensors)
                known.write(target, tensors, self.config, dtype, checkpoint.tokenizer)
        return str(target)


def _is_matrix(shape):
    return sum(size > 1 for size in shape) > 1


def check_peers(names):
    """The names of other programs, as a tuple. A ValueError if one of them is unknown."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f"The programs to compare with are {' and '.join(PEERS)}. Received: {shown(name)}.")
    return tuple(dict.fromkeys(names))


def ours(subject, strategy, settings, module=OURS_MODULE):
    """This package, with a `Strategy`."""
    options = {"path": str(subject.path), "strategy": str(strategy), "vocabulary": subject.config.vocab_size}
    return Program(OURS, f"{OURS}, {strategy}", str(strategy), module, options, tuple(settings.commands))


def peer(name, subject, strategy, settings: Settings, folder, threads):
    """Another program with what is nearest to a strategy, a str without 'auto'. folder: for the file that it reads.

    Raises:
        ValueError: it is not installed, or cannot run such a model; what it is, and what helps.
    """
    parts = Strategy.of(strategy).parts
    options = {"vocabulary": subject.config.vocab_size, "version": subject.config.model, "threads": threads}
    asked = tuple(settings.commands)
    if name == "rwkv":
        _check_rwkv(parts, subject.config.model)
        options |= {"path": subject.written(folder, "pth"), "strategy": strategy}
        asked = tuple(one for one in asked if not one.startswith("texts"))  # it has one text at a time
        return Program(name, label_of(name, strategy), strategy, f"{__package__}.peer_rwkv", options, asked)
    dtype = _llama_dtype(parts)
    options |= {"path": subject.written(folder, "gguf", dtype), "texts": max(settings.texts, default=1)}
    options["length"] = max(4096, settings.prompt + settings.decode)
    return Program(name, label_of(name, strategy), strategy, f"{__package__}.peer_llama_cpp", options, asked)


def label_of(name, strategy):
    """What a row of another program is called."""
    parts = Strategy.of(strategy).parts
    kind = GGUF.get((parts[0].dtype, parts[0].stored)) if name == "llama.cpp" and len(parts) == 1 else None
    return f"{name}, {kind[0] if kind else strategy}"


def _check_rwkv(parts, version):
    """A ValueError if the `rwkv` package cannot run here, or not so."""
    for needed, packages in (("torch", "torch"), ("rwkv", "rwkv")):
        if find_spec(needed) is None:
            raise ValueError(f"the rwkv package needs '{needed}', which is not installed: `pip install {packages}`.")
    if any(part.stored == "int4" for part in parts):
        raise ValueError("the rwkv package has no i4; compare fp32, bf16, fp16 or i8.")
    if version == "rwkv7" and (len(parts) > 1 or parts[0].stored or parts[0].streamed):
        raise ValueError("the rwkv package runs RWKV-7 on one device and in one dtype; compare such a strategy.")


def _llama_dtype(parts):
    """The dtype of `convert` for llama.cpp, or a ValueError if it cannot run here, or not so."""
    if find_spec("llama_cpp") is None:
        raise ValueError("llama.cpp is not installed: `pip install llama-cpp-python`, which compiles it.")
    kind = GGUF.get((parts[0].dtype, parts[0].stored)) if len(parts) == 1 else None
    if kind is None or not parts[0].device.startswith("cpu"):
        raise ValueError("llama.cpp is compared where all is on the processor, in fp32, fp16, bf16, fp32i8 or fp32i4.")
    return kind[1]
