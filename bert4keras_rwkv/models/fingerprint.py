"""Which model it is, by all that decides what it remembers of a text."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models.lora import described

THREADS = 2
PIECE = 1 << 24  # bytes hashed at a time
FORM = 1  # of states; another one for a version that reads the same text to other numbers


def fingerprint(rwkv):
    """64 hexadecimal digits: others for a model that may read a text to another state, the same on every backend.

    They stand for the config, the dtypes, what is tuned and quantised, and the path, dtype,
    shape and bytes of every variable, those of LoRAs, tuned states and packed matrices too. No more than two variables
    are copied at a time.
    """
    backbone = rwkv.backbone
    variables = sorted(backbone.variables, key=lambda variable: variable.path)
    with ThreadPoolExecutor(THREADS) as threads:
        hashes = list(threads.map(_hash, variables))
    facts = {
        "form": FORM,
        "config": backbone.config.to_dict(),
        "dtypes": [*backbone.state_dtypes, *(block.compute_dtype for block in backbone.blocks)],
        "rescale_layer": backbone.rescale_layer,
        "tuned": described(backbone),
        "variables": [(v.path, v.dtype, tuple(v.shape), said) for v, said in zip(variables, hashes, strict=True)],
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=32).hexdigest()


def _hash(variable):
    """The hash of a variable's bytes, as rows one after another."""
    hashed, array = hashlib.blake2b(digest_size=32), ops.convert_to_numpy(variable)
    rows = array.reshape(-1) if array.ndim == 0 else array
    step = max(1, PIECE * len(rows) // max(1, rows.nbytes))
    for at in range(0, len(rows), step):
        hashed.update(np.ascontiguousarray(rows[at : at + step]).view("uint8").data)
    return hashed.hexdigest()
