"""RWKV-6 and RWKV-7 checkpoints of real shapes with random weights, written once to a cache folder.

The speed of a model does not depend on its values, as long as they stay finite and of ordinary size.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from bert4keras_rwkv.atomic import locked

VOCABULARY, HEAD, MIX_RANK, DECAY_RANK = 65536, 64, 32, 64
RANKS7 = {"w": 64, "a": 64, "v": 32, "g": 128}


@dataclass(frozen=True)
class Size:
    """Layers and width of a model, written "12x768"."""

    layers: int
    width: int

    @classmethod
    def parse(cls, text):
        layers, width = text.split("x")
        return cls(int(layers), int(width))

    def __str__(self):
        return f"{self.layers}x{self.width}"

    @property
    def inner(self):
        """Width of the channel mix."""
        return int(self.width * 3.5) // 32 * 32

    @property
    def block_parameters(self):
        """Parameters of all blocks, which every token passes through."""
        C = self.width
        time = 5 * C * C + 2 * 5 * MIX_RANK * C + 2 * DECAY_RANK * C + 10 * C
        channel = 2 * C * self.inner + C * C + 2 * C
        return self.layers * (time + channel + 4 * C)

    @property
    def head_parameters(self):
        """Parameters of the output layer, needed once per token whose logits are asked for."""
        return VOCABULARY * self.width


def shapes7(size):
    """(official name, shape, spread, centre) of every weight of an RWKV-7."""
    C, H = size.width, size.width // HEAD
    yield "emb.weight", (VOCABULARY, C), 0.5, 0.0
    for i in range(size.layers):
        block = f"blocks.{i}."
        for norm in ("ln1", "ln2", "att.ln_x", *(["ln0"] if i == 0 else [])):
            yield f"{block}{norm}.weight", (C,), 0.02, 1.0
            yield f"{block}{norm}.bias", (C,), 0.02, 0.0
        for name in "rwkvag":
            yield f"{block}att.x_{name}", (1, 1, C), 0.2, 0.5
        for name, rank in RANKS7.items():
            yield f"{block}att.{name}1", (C, rank), 0.02, 0.0
            yield f"{block}att.{name}2", (rank, C), 0.05, 0.0
        for name, centre in (("w0", -2.0), ("a0", 0.0), ("v0", 0.7), ("k_k", 0.7), ("k_a", 1.0)):
            yield f"{block}att.{name}", (1, 1, C), 0.1, centre
        yield f"{block}att.r_k", (H, HEAD), 0.1, 0.0
        for name in ("receptance", "key", "value", "output"):
            yield f"{block}att.{name}.weight", (C, C), 0.5 / C**0.5, 0.0
        yield f"{block}ffn.x_k", (1, 1, C), 0.2, 0.5
        yield f"{block}ffn.key.weight", (4 * C, C), 0.5 / C**0.5, 0.0
        yield f"{block}ffn.value.weight", (C, 4 * C), 0.25 / C**0.5, 0.0
    yield "ln_out.weight", (C,), 0.02, 1.0
    yield "ln_out.bias", (C,), 0.02, 0.0
    yield "head.weight", (VOCABULARY, C), 0.5 / C**0.5, 0.0


def shapes(size):
    """(official name, shape, spread, centre) of every weight of an RWKV-6."""
    C, F, H = size.width, size.inner, size.width // HEAD
    yield "emb.weight", (VOCABULARY, C), 0.5, 0.0
    yield "blocks.0.ln0.weight", (C,), 0.02, 1.0
    yield "blocks.0.ln0.bias", (C,), 0.02, 0.0
    for i in range(size.layers):
        block = f"blocks.{i}."
        for norm in ("ln1", "ln2", "att.ln_x"):
            yield f"{block}{norm}.weight", (C,), 0.02, 1.0
            yield f"{block}{norm}.bias", (C,), 0.02, 0.0
        for name in "xwkvrg":
            yield f"{block}att.time_maa_{name}", (1, 1, C), 0.2, 0.5
        yield f"{block}att.time_maa_w1", (C, 5 * MIX_RANK), 0.02, 0.0
        yield f"{block}att.time_maa_w2", (5, MIX_RANK, C), 0.05, 0.0
        yield f"{block}att.time_decay", (1, 1, C), 1.5, -3.5
        yield f"{block}att.time_decay_w1", (C, DECAY_RANK), 0.02, 0.0
        yield f"{block}att.time_decay_w2", (DECAY_RANK, C), 0.05, 0.0
        yield f"{block}att.time_faaaa", (H, HEAD), 0.3, 0.0
        for name in ("receptance", "key", "value", "gate", "output"):
            yield f"{block}att.{name}.weight", (C, C), 0.5 / C**0.5, 0.0
        for name in "kr":
            yield f"{block}ffn.time_maa_{name}", (1, 1, C), 0.2, 0.5
        yield f"{block}ffn.key.weight", (F, C), 0.5 / C**0.5, 0.0
        yield f"{block}ffn.receptance.weight", (C, C), 0.5 / C**0.5, 0.0
        yield f"{block}ffn.value.weight", (C, F), 0.5 / F**0.5, 0.0
    yield "ln_out.weight", (C,), 0.02, 1.0
    yield "ln_out.bias", (C,), 0.02, 0.0
    yield "head.weight", (VOCABULARY, C), 0.5 / C**0.5, 0.0


def cache_folder():
    """Where checkpoints are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert4keras_rwkv" / "benchmarks"


def checkpoint(size, folder=None, version="6"):
    """The path of a bfloat16 `.pth` of this size; it is written if it is not there, by one process for all."""
    path = Path(folder or cache_folder()) / f"rwkv{version}-{size}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            write(path, size, version)
    return path


def write(path, size, version):
    import torch

    random = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    weights = {
        name: (torch.randn(shape, generator=random, device=random.device) * spread + centre).to(torch.bfloat16).cpu()
        for name, shape, spread, centre in {"6": shapes, "7": shapes7}[version](size)
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(weights, unfinished)
    unfinished.rename(path)


if __name__ == "__main__":
    import sys

    for text in sys.argv[1:]:
        print(checkpoint(Size.parse(text)))
