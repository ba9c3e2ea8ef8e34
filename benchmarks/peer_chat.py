"""A conversation as a worker: python -m benchmarks.peer_chat ours|rwkv CHECKPOINT NUMBERS.

`rwkv` talks as ChatRWKV's v2/chat.py does with that package: it reads the same opening and message, in pieces of 256
tokens. Both take the likeliest token. NUMBERS: its strategy; of ours, a quantisation.
"""

import copy
import os
import sys
import time

from .worker import STARTED, serve

MESSAGE = "Tell me about ravens and writing desks."
CHUNK, TEMPLATE = 256, "friends-en"


def ours(path, quantization):
    from bert4keras_rwkv import RWKV, Chat

    rwkv = RWKV.from_preset(path, quantization=quantization)
    chat = Chat(rwkv, TEMPLATE, sampling="greedy", max_new_tokens=100)
    chat.prepare()

    class Ours:
        def __init__(self):
            self.facts = {"first_s": first_of(lambda: next(chat.fork().stream(MESSAGE)))}

        def message(self, _):
            """From a message to the first piece of the reply."""
            other = chat.fork()
            return timed(lambda: next(other.stream(MESSAGE)))

        def reply(self, n):
            """n tokens of a reply, after the first piece."""
            stream = chat.fork().stream(MESSAGE)
            next(stream)
            before, started = stream.drawn, time.perf_counter()
            for _ in stream:
                if stream.drawn - before >= n:
                    break
            return (time.perf_counter() - started) * n / (stream.drawn - before)

        def stream(self, n):
            """The same without a chat: `RWKV.stream`, after the first token."""
            ids = iter(rwkv.stream(chat.ids, max_new_tokens=n + 1, sampling="greedy", stop_token_ids=None))
            next(ids)
            return timed(lambda: list(ids))

    return Ours()


def rwkv(path, strategy):
    os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = "1", "0"
    with open(path, "rb") as file:
        os.environ["RWKV_V7_ON"] = "1" if b"att.x_r" in file.read(1 << 20) else "0"
    import torch
    from rwkv.model import RWKV
    from rwkv.utils import PIPELINE

    from bert4keras_rwkv.templates import template_of

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = RWKV(model=path.removesuffix(".pth"), strategy=strategy)
    pipeline, template = PIPELINE(model, "rwkv_vocab_v20230424"), template_of(TEMPLATE)

    def read(parts, state):
        ids = pipeline.encode("".join(part.text for part in parts))
        for at in range(0, len(ids), CHUNK):
            logits, state = model.forward(ids[at : at + CHUNK], copy.deepcopy(state))
        return logits, state

    def write(logits, state):
        """How many tokens there are of a reply, after each of them; it is shown where it decodes."""
        ids, shown = [], 0
        while True:
            ids.append(pipeline.sample_logits(logits, temperature=1.0, top_p=0.0))
            if "\ufffd" not in pipeline.decode(ids[shown:]):
                shown = len(ids)
            yield len(ids)
            logits, state = model.forward(ids[-1:], state)

    _, opened = read(template.opening(), None)

    def replied():
        return write(*read([*template.turn("user", MESSAGE), *template.turn("assistant")], opened))

    class Package:
        def __init__(self):
            self.facts = {"first_s": first_of(lambda: next(replied()))}

        def message(self, _):
            return timed(lambda: next(replied()))

        def reply(self, n):
            tokens = replied()
            before, started = next(tokens), time.perf_counter()
            after = next(count for count in tokens if count - before >= n)
            return (time.perf_counter() - started) * n / (after - before)

    return Package()


def timed(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def first_of(function):
    """Seconds since this process started, after the first reply has begun."""
    function()
    return time.perf_counter() - STARTED


if __name__ == "__main__":
    program, path, numbers = sys.argv[1:]
    serve(lambda: {"ours": ours, "rwkv": rwkv}[program](path, numbers))
