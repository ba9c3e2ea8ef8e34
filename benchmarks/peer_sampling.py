"""Choosing the next token from 65,536 logits for 16 rows, as a worker. The backend is KERAS_BACKEND.

Commands are a sampler and a distribution, such as `top_p_peaked`. Peaked: as a trained model's, a few tokens hold most
of the probability. Flat: as an untrained model's, thousands of tokens are needed for a share of 0.85.
"""

import time

import numpy as np

from .worker import serve

ROWS, VOCABULARY, STEPS = 16, 65536, 8
SAMPLERS = {
    "greedy": {"temperature": 0.0},
    "all": {},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.85},
    "top_p_k": {"top_p": 0.7, "top_k": 40},
}


def distributions():
    """Logits (ROWS, VOCABULARY) by name."""
    random = np.random.default_rng(0)
    rank = random.permuted(np.tile(np.arange(VOCABULARY), (ROWS, 1)), axis=1)
    return {"peaked": -1.5 * np.log1p(rank), "flat": random.standard_normal((ROWS, VOCABULARY))}


def to_tensor(array):
    import keras

    return keras.ops.convert_to_tensor(array.astype("float32"))


class Choice:
    """One method for every sampler and distribution; each gives the seconds of one step."""

    def __init__(self):
        from bert4keras_rwkv.generation.sampling import Sampling

        seeds = np.stack([np.arange(ROWS), np.zeros(ROWS)], axis=1).astype("int32")
        for name, options in SAMPLERS.items():
            sampling = Sampling(**options)
            step = self.step(sampling.plan())
            for kind, logits in distributions().items():
                run = self.runner(step, to_tensor(logits), sampling.values(ROWS), seeds)
                setattr(self, f"{name}_{kind}", run)
                run()

    @staticmethod
    def step(plan):
        from bert4keras_rwkv.generation.draw import draw
        from bert4keras_rwkv.ops.compile import compiled

        return compiled(lambda logits, values, seeds: draw(logits, plan, values, seeds))

    @staticmethod
    def runner(step, *tensors):
        import keras

        def run():
            started = time.perf_counter()
            for _ in range(STEPS):
                keras.ops.convert_to_numpy(step(*tensors))
            return (time.perf_counter() - started) / STEPS

        return run


if __name__ == "__main__":
    serve(Choice)
