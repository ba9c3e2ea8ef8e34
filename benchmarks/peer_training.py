"""Training steps as a worker: forward, backward and AdamW. Arguments: version, kernel, what trains ('all' or 'state').

The backend is KERAS_BACKEND. Command: `step`, the seconds of one `train_on_batch`.
"""

import sys
import time

import numpy as np

from .worker import serve

LAYERS, WIDTH, HEAD, BATCH, LENGTH, VOCABULARY = 12, 256, 64, 4, 512, 4096
# Keras Hub's ranks of RWKV-7, whatever the width.
RANKS = {"gate_low_rank_dim": 128, "v_low_rank_dim": 32, "a_low_rank_dim": 64, "decay_low_rank_dim": 64}


def texts():
    """Ids (BATCH, LENGTH), and the one that follows each."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (BATCH, LENGTH + 1)).astype("int32")
    return ids[:, :-1], ids[:, 1:]


def built(version, kernel="auto"):
    """An RWKV with the weights its authors start with."""
    from bert4keras_rwkv.models import build_transformer_model

    return build_transformer_model(
        model=f"rwkv{version}",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        attention_head_size=HEAD,
        intermediate_size=4 * WIDTH,
        pad_token_id=None,
        kernel=kernel,
        **(RANKS if version == "7" else {}),
    )


class Training:
    """`RWKV.training_model()`, compiled and stepped once."""

    def __init__(self, version, kernel, trains):
        import keras

        rwkv = built(version, kernel)
        if trains == "state":
            rwkv.enable_state_tuning(time_shift_tuning=True)
        self.model = rwkv.training_model()
        self.model.compile(keras.optimizers.AdamW(1e-4))
        self.ids, _ = texts()
        started = time.perf_counter()
        self.step()
        self.facts = {"first_step_s": time.perf_counter() - started, "parameters": rwkv.model.count_params()}
        self.step()

    def step(self):
        started = time.perf_counter()
        self.model.train_on_batch([self.ids])
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(lambda: Training(*sys.argv[1:]))
