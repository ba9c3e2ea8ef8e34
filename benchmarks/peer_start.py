"""One start of a program, up to the fifth token: python -m benchmarks.peer_start ours|rwkv|llama.cpp MODEL.

Writes one line of JSON: seconds since its parent started it (START, by `time.time`) at the end of each phase.
"""

import json
import os
import sys
import time

PROMPT, TOKENS = list(range(1, 9)), 5


class Phases:
    def __init__(self):
        self.ends, self.within = {}, {}

    def end(self, name):
        self.ends[name] = time.time() - float(os.environ["START"])

    def timed(self, owner, name, label):
        """Add up the seconds spent in a function."""
        function = getattr(owner, name)

        def run(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.within[label] = self.within.get(label, 0.0) + time.perf_counter() - started

        setattr(owner, name, run)


def ours(path, phases):
    """By `RWKV.stream`, in Python, on JAX."""
    from bert4keras_rwkv.models import RWKV, build
    from bert4keras_rwkv.ops import executables

    phases.end("imports")
    phases.timed(build, "_tokenizer", "tokenizer")
    phases.timed(executables, "_read", "programs read")
    phases.timed(executables, "_compiled", "programs compiled")
    rwkv = RWKV.from_preset(path)
    phases.end("loaded")
    ids = rwkv.stream(PROMPT, len(PROMPT) + TOKENS, stop_token_ids=None)
    next(ids)
    phases.end("first token")
    list(ids)
    phases.end("fifth token")


def rwkv(path, phases):
    """By the `rwkv` package, in float32."""
    os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = "1", "0"
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with open(path, "rb") as file:  # the package asks for the version before it is imported
        version = "7" if b"att.x_r" in file.read(1 << 20) else "6"
    os.environ["RWKV_V7_ON"] = "1" if version == "7" else "0"
    from rwkv.model import RWKV
    from rwkv.utils import PIPELINE

    phases.end("imports")
    model = RWKV(model=path.removesuffix(".pth"), strategy="cpu fp32")
    pipeline = PIPELINE(model, "rwkv_vocab_v20230424")
    phases.end("loaded")
    logits, state = model.forward(PROMPT, None)
    for number in range(TOKENS):
        token = pipeline.sample_logits(logits, temperature=1.0, top_p=0.85)
        if number == 0:
            phases.end("first token")
        if number < TOKENS - 1:
            logits, state = model.forward([token], state)
    phases.end("fifth token")


def llama_cpp(path, phases):
    """By llama.cpp, of a GGUF file."""
    import llama_cpp as library

    phases.end("imports")
    model = library.Llama(path, n_ctx=512, n_threads=len(os.sched_getaffinity(0)), verbose=False)
    phases.end("loaded")
    ids = model.generate(PROMPT, temp=0.0)
    next(ids)
    phases.end("first token")
    for _ in range(TOKENS - 1):
        next(ids)
    phases.end("fifth token")


def main():
    program, path = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    phases = Phases()
    {"ours": ours, "rwkv": rwkv, "llama.cpp": llama_cpp}[program](path, phases)
    print(json.dumps({"ends": phases.ends, "within": phases.within}), file=answers, flush=True)


if __name__ == "__main__":
    main()
