"""This package as a measured program, on the backend that KERAS_BACKEND names."""

import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from bert4keras_rwkv import __version__
from bert4keras_rwkv.evaluation.speed.serving import prompt_ids, serve
from bert4keras_rwkv.keras_loader import chosen_backend
from bert4keras_rwkv.weights.tensors import count, dtype_named


class Ours:
    """A model with a strategy. What the strategy means is known before the weights are read."""

    def __init__(self, options):
        from bert4keras_rwkv.models.plan import plan_of

        self._path, self._vocabulary = options["path"], options["vocabulary"]
        plan = plan_of(self._path, options["strategy"])
        self._strategy, self._model = plan.strategy, None
        self.facts = {
            "strategy": str(plan.strategy),
            "needed_bytes": plan.needed(),
            "free_bytes": plan.free,
            "problems": list(plan.problems()),
            "versions": _versions(),
        }

    def load(self):
        """Read the weights, and write a first token."""
        from bert4keras_rwkv.models import RWKV

        started = time.perf_counter()
        self._model = RWKV.from_preset(self._path, strategy=self._strategy)
        loaded = time.perf_counter()
        self.decode(1)
        held, step = _bytes_of(self._model.backbone)
        seconds = {"load_seconds": loaded - started, "first_seconds": time.perf_counter() - loaded}
        return {**seconds, "held_bytes": held, "step_bytes": step}

    def prefill(self, count):
        """Read a prompt; the logits of its last token."""
        from bert4keras_rwkv.keras_loader import ops

        ids = np.array([prompt_ids(count, self._vocabulary)], "int32")
        started = time.perf_counter()
        logits, _ = self._model.prefill(ids)
        ops.convert_to_numpy(logits)
        return time.perf_counter() - started

    def decode(self, count):
        """So many tokens, as `generate` writes them, after a first one that is not counted."""
        ids = prompt_ids(8, self._vocabulary)
        stream = self._model.stream(ids, max_new_tokens=count + 1, sampling="greedy", stop_token_ids=None)
        next(stream)
        started = time.perf_counter()
        for _ in stream:
            pass
        return time.perf_counter() - started

    def texts(self, count, texts):
        """So many tokens of each of several texts, side by side."""
        prompts = [[one] for one in prompt_ids(texts, self._vocabulary)]
        started = time.perf_counter()
        self._model.generate(prompts, max_new_tokens=count, sampling="greedy", stop_token_ids=None)
        return time.perf_counter() - started


def _bytes_of(backbone):
    """Bytes of all weights as they are held, and of those that a step of one token reads: all but the embedding."""
    sizes = [(count(one.shape) * dtype_named(one.dtype).itemsize, "embed" in one.path) for one in backbone.weights]
    return sum(size for size, _ in sizes), sum(size for size, is_embedding in sizes if not is_embedding)


def _versions():
    """Name -> version of what computes."""
    (engine, _) = chosen_backend()
    return {"bert4keras_rwkv": __version__, "keras": version("keras"), engine: _installed(engine, f"{engine}-cpu")}


def _installed(*names):
    """The version of the first of some distributions that is installed; None if none is."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


if __name__ == "__main__":
    serve(Ours)
