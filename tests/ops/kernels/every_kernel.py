"""Every kernel of a GPU once, on small tensors and with no framework in the process: for compute-sanitizer to look at.

`python -m tests.ops.kernels.every_kernel`. Each tensor is memory of its own, so that nothing beside it may be read.
"""

from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from bert4keras_rwkv.ops.kernels import cuda, library
from bert4keras_rwkv.packing import Scheme, pack
from tests.ops.kernels import guards
from tests.ops.kernels.card import Card, Memory

HALF = np.dtype(ml_dtypes.bfloat16)
# T, N, whether a gradient follows, the dtype of the inputs: one token; token by token; by chunks, the last not full.
CASES = [(1, 64, False, "float32"), (1, 40, False, HALF), (37, 64, True, "float32"), (18, 7, True, HALF)]
CASES += [(37, N, True, HALF) for N in cuda.CHUNKED_HEADS]
INPUTS = {"wkv4": 2, "wkv6": 4, "wkv7": 6}  # those that there is one of for each token


def run_all(card, names=tuple(INPUTS), cases=CASES):
    """Run them; decays are float32, as those of models. An error says what is wrong."""
    for name in names:
        for T, N, keep, dtype in cases:
            dtypes = [dtype, dtype if name == "wkv4" else "float32", *[dtype] * (INPUTS[name] - 2)]
            guards.check(partial(card.run, guard=0), name, T, N, np.random.default_rng(0), keep, dtypes)
            print(f"{name} of {np.dtype(dtype)}, {T} tokens, heads of {N}{', with its gradient' if keep else ''}")


def run_products(card):
    """Each product with a packed matrix, of rows and numbers that fill nothing; most rows are rounded first."""
    for name, bits in cuda.PACKED.items():
        scheme, rng = Scheme(bits, group=64), np.random.default_rng(0)
        packed = list(pack(rng.standard_normal((37, 300)).astype("float32"), scheme).values())
        for rows in (1, 3, 8, 17, 64):
            x, kind = rng.standard_normal((rows, 300)).astype("float32"), cuda.product_of(rows)
            shape = library.rounded_shape(f"{kind}_{name}", x, packed[0])
            if shape is not None:
                x, given = np.empty(shape, "uint8"), x
                card.run("round_rows", guards.described([given]), guards.described([x]), guard=0)
            if kind is not None:
                y = np.full((rows, 37), np.nan, "float32")
                card.run(f"{kind}_{name}", guards.described([x, *packed]), guards.described([y]), guard=0)
                if not np.isfinite(y).all():
                    raise RuntimeError(f"{kind}_{name} of {rows} rows leaves something out")
                print(f"{kind}_{name}, {rows} rows")


if __name__ == "__main__":
    Memory(cuda.DRIVER)  # before the host asks for a context: that there is none would be an error to the sanitizer
    cuda.device()
    run_all(Card(Path()))
    run_products(Card(Path()))
