"""How much storing the matrices of a model in fewer bytes costs: a table of every way beside the model as it is.

    python scripts/measure_quantisation.py MODEL --texts held_out.jsonl --calibrate train.jsonl

prints bits a token of held-out text; how often the likeliest token is the one of the model as it is; the divergence
from what that predicts, in bits; and bytes. `--stdlib FOLDER` writes train.jsonl and held_out.jsonl instead, modules of
Python's standard library; `--bytes` reads texts as bytes with 0 after each, for models without a vocabulary.
"""

import argparse
import json
import math
import os
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")

from keras import ops

from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.models.quantization import Quantization
from bert4keras_rwkv.packing import Scheme

END = 0
ROWS, LENGTH = 8, 256
HELD_OUT_EVERY = 10
WAYS = {
    "bfloat16": ("bfloat16", False, False),
    "int8": ("int8", False, False),
    "int8, calibrated": ("int8", True, False),
    "int4": ("int4", False, False),
    "int4, calibrated": ("int4", True, False),
    "int4, compensated": ("int4", True, True),
    "int4 in groups of 128": (Quantization(Scheme(4, group=128), Scheme(8)), False, False),
    "int4 without least values": (Quantization(Scheme(4, least=False), Scheme(8)), False, False),
}


class Predicted(NamedTuple):
    """What a model made of a text: bits a token, and the log-probabilities (N, V) in nats."""

    bits: float
    log_p: np.ndarray


def texts_in(path):
    return [json.loads(line)["text"] for line in Path(path).read_text("utf-8").splitlines()]


def some_of(texts):
    """The beginnings of a few texts, drawn with a fixed seed."""
    return [texts[i][:4000] for i in np.random.default_rng(0).permutation(len(texts))[:100]]


def ids_of(texts, tokenizer):
    """The ids of texts, (N,): an end token before each, or without a tokenizer their bytes with 0 after each."""
    if tokenizer is None:
        return np.array([one for text in texts for byte in text.encode() for one in (byte, 0)], "int32")
    return np.array([one for text in texts for one in (END, *tokenizer.encode(text))], "int32")


def predict(rwkv, ids, rows=ROWS):
    """Let a model read ids (N,), as rows side by side: `Predicted`."""
    length = (len(ids) - 1) // (rows * LENGTH) * LENGTH
    inputs, targets = (ids[move : move + rows * length].reshape(rows, length) for move in (0, 1))
    state, parts = None, []
    for start in range(0, length, LENGTH):
        logits, state = rwkv.forward(inputs[:, start : start + LENGTH], state)
        logits = np.asarray(ops.convert_to_numpy(logits), "float32")
        logits -= logits.max(-1, keepdims=True)
        parts.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    log_p = np.concatenate(parts, axis=1)
    found = np.take_along_axis(log_p, targets[..., None], axis=-1)
    return Predicted(float(-found.mean() / math.log(2)), log_p)


def compare(wanted, found):
    """How often the likeliest tokens agree, and the divergence from what is wanted, bits a token."""
    agreement = np.mean(wanted.log_p.argmax(-1) == found.log_p.argmax(-1))
    return float(agreement), float((np.exp(wanted.log_p) * (wanted.log_p - found.log_p)).sum(-1).mean() / math.log(2))


def measure(model, texts, calibration, tokens, plain_bytes):
    """Print the table, line by line."""

    def fresh():
        return RWKV.from_preset(model, dtype="float32")

    rwkv = fresh()
    tokenizer = None if plain_bytes else rwkv.tokenizer
    ids, calibration = ids_of(texts, tokenizer)[: tokens + 1], ids_of(calibration, tokenizer)
    wanted = predict(rwkv, ids)
    print(f"{model}: {wanted.log_p[..., 0].size} tokens\n")
    print("| | bits a token | | top-1 | divergence | MB | s |\n|---|---|---|---|---|---|---|")
    print(f"| float32 | {wanted.bits:.4f} | | | | {megabytes(rwkv):.2f} | |")
    for name, (how, calibrated, compensate) in WAYS.items():
        rwkv, start = fresh(), time.perf_counter()
        rwkv.quantize(how, calibrate=calibration if calibrated else None, compensate=compensate)
        seconds, found = time.perf_counter() - start, predict(rwkv, ids)
        (top, divergence), change = compare(wanted, found), found.bits / wanted.bits - 1
        cells = (
            f"{found.bits:.4f} | {change:+.2%} | {top:.1%} | {divergence:.5f} | {megabytes(rwkv):.2f} | {seconds:.1f}"
        )
        print(f"| {name} | {cells} |", flush=True)


def megabytes(rwkv):
    """What the weights take in memory."""
    return sum(np.asarray(ops.convert_to_numpy(v)).nbytes for v in rwkv.backbone.variables) / 1e6


def write_stdlib(folder):
    """train.jsonl and held_out.jsonl: the modules of the standard library, one of ten held out."""
    texts = [path.read_text("utf-8") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
    held_out = texts[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", [text for text in texts if text not in held_out]), ("held_out", held_out)):
        lines = (json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="finch-jargon", help="default: %(default)s")
    parser.add_argument("--texts", help="JSON lines that the model has not read")
    parser.add_argument("--calibrate", help="JSON lines to calibrate with, others")
    parser.add_argument("--tokens", type=int, default=24576, help="how many are predicted (default: %(default)s)")
    parser.add_argument("--bytes", action="store_true", help="texts as bytes with 0 after each")
    parser.add_argument("--stdlib", type=Path, help="write texts to this folder, and measure nothing")
    args = parser.parse_args()
    if args.stdlib:
        write_stdlib(args.stdlib)
    else:
        measure(args.model, texts_in(args.texts), some_of(texts_in(args.calibrate)), args.tokens, args.bytes)


if __name__ == "__main__":
    main()
