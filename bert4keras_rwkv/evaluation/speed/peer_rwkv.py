"""The `rwkv` package, on PyTorch, as a measured program."""

import os
from importlib.metadata import version

from bert4keras_rwkv.evaluation.speed.serving import Peer, serve

CHUNK = 256  # what its own pipeline reads at a time


class Rwkv(Peer):
    """A `.pth` file with a strategy of this package."""

    def __init__(self, options):
        super().__init__(options)
        os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = "1", "0"
        os.environ["RWKV_V7_ON"] = "1" if options["version"] == "rwkv7" else "0"
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # what is pickled in a file does not run
        import torch

        torch.set_num_threads(options["threads"])
        self.facts = {"versions": {"rwkv": version("rwkv"), "torch": torch.__version__}}

    def open(self):
        from rwkv.model import RWKV

        self.model = RWKV(model=self.options["path"].removesuffix(".pth"), strategy=self.options["strategy"])

    def read(self, ids, state):
        for i in range(0, len(ids), CHUNK):
            logits, state = self.model.forward(ids[i : i + CHUNK], state)
        return logits.float().cpu().numpy(), state


if __name__ == "__main__":
    serve(Rwkv)
