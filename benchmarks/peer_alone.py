"""What a model writes alone, without a server: python -m benchmarks.peer_alone MODEL. It takes and gives lines of JSON.

{"prompt": ..., "max_tokens": ...}, or "messages" in place of a prompt, is answered by {"text": ...}, greedily. With a
"text" it is answered by {"near": ...}: whether that is written by choices that are each as good as the best, but for
rounding.
"""

import json
import os
import sys

import numpy as np

from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.models.request import end_ids
from bert4keras_rwkv.templates import conversation, ids_of, template_for, template_of
from bert4keras_rwkv.tokenizers.prompts import unix_lines
from bert4keras_rwkv.tokenizers.text_stream import TokenText

NEAR = 1e-3  # between logits that rounding may put in another order


class Alone:
    """One model, an `RWKV`."""

    def __init__(self, rwkv):
        self._rwkv, self._tokenizer, size, origin = rwkv, rwkv.tokenizer, rwkv.config.vocab_size, rwkv.origin
        self._ends, self._silent = end_ids("auto", self._tokenizer, size), self._tokenizer.without_text(size)
        self._template = template_of(template_for(origin.name, origin.template, size))

    def ask(self, line):
        """The answer to one line, a dict."""
        asked = json.loads(line)
        if "text" in asked:
            return {"near": self.near(asked, asked["text"])}
        prompt, stops = self._prompt(asked)
        text = self._rwkv.generate(
            prompt, max_new_tokens=asked["max_tokens"], sampling="greedy", strip_prompt=True, stop_texts=stops
        )
        return {"text": text.lstrip() if "messages" in asked else text}

    def near(self, asked, text):
        """Whether a text is one of those that choices within NEAR of the best lead to."""
        prompt, stops = self._prompt(asked)
        ids = self._tokenizer.encode(prompt)
        logits, state = self._rwkv.prefill(np.array([ids], "int32"))
        return self._leads(asked, stops, text, [], np.array(logits)[0], state)

    def _leads(self, asked, stops, text, drawn, logits, state):
        """Whether one of the best tokens behind `drawn` leads to the text."""
        logits[list(self._silent)] = -np.inf
        for token in np.flatnonzero(logits >= logits.max() - NEAR).tolist():
            shown, ended = self._shown(asked, stops, [*drawn, token])
            if ended and shown == text:
                return True
            if not ended and text.startswith(shown):
                more, after = self._rwkv.prefill(np.array([[token]], "int32"), state)
                if self._leads(asked, stops, text, [*drawn, token], np.array(more)[0], after):
                    return True
        return False

    def _shown(self, asked, stops, drawn):
        """The text of drawn ids, and whether it has ended."""
        written = TokenText(self._tokenizer, stops)
        shown = "".join(written.feed(token) for token in drawn if token not in self._ends)
        ended = written.stopped or drawn[-1] in self._ends or len(drawn) >= asked["max_tokens"]
        shown += written.flush() if ended else ""
        return (shown.lstrip() if "messages" in asked else shown), ended

    def _prompt(self, asked):
        """(text, stop texts)."""
        if "prompt" in asked:
            return unix_lines(asked["prompt"]), ()
        parts = conversation(asked["messages"], "messages", self._template) + self._template.turn("assistant")
        text = "".join(part.text for part in parts)
        if self._tokenizer.encode(text) != ids_of(self._tokenizer, parts):
            raise ValueError(f"The parts of this conversation are not the tokens of its text: {asked}")
        return text, tuple(self._template.stop_texts)


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    alone = Alone(RWKV.from_preset(sys.argv[1], quantization="auto"))  # as `serve` loads it
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(alone.ask(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
