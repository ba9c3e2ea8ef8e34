"""Every kernel of a GPU once, on small tensors and with no framework in the process: for compute-sanitizer to look at.

`python -m tests.ops.kernels.every_kernel`. Each tensor is memory of its own, so that nothing beside it may be read.
"""

from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from bert4keras_rwkv.ops.kernels import cuda
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


if __name__ == "__main__":
    Memory(cuda.DRIVER)  # before the host asks for a context: that there is none would be an error to the sanitizer
    cuda.device()
    run_all(Card(Path()))
