"""A program of its own that tries a grammar out: one that takes forever, or more than there is, harms nothing but it.

It reads a JSON object with `grammar`, `limits` and `seconds`, and writes what is wrong with it, "" for nothing.
"""

import json
import re
import sys
import threading

import llguidance

BEHIND = re.compile(r"<(?:state|non-verbose/|backtrace)>.*", re.S)  # what is for who looks into the library
NOTHING_FITS = "nothing satisfies it"
STACK = 1 << 20  # bytes, of which a thread of a server has several times as many


class Bytes:
    """A vocabulary of single bytes, as llguidance asks for one."""

    eos_token_id, bos_token_id = 256, None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"")

    def __call__(self, data):
        return list(data)


def matcher(tokenizer, grammar, limits):
    """An LLMatcher that has looked at what may come first, so that its `get_error` says what is wrong already."""
    made = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**limits))
    if not made.is_error():
        made.compute_bitmask()
    return made


def problem(made):
    """What is wrong with an LLMatcher, in words, "" for nothing."""
    said = BEHIND.sub("", made.get_error()).strip()
    return NOTHING_FITS if said.startswith("NoExtension") else said


def main():
    """Try one grammar."""
    asked = json.load(sys.stdin)
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=257, eos_token=[256])
    found = []
    threading.stack_size(STACK)

    def tried():
        found.append(problem(matcher(tokenizer, asked["grammar"], asked["limits"])))

    thread = threading.Thread(target=tried, daemon=True)
    thread.start()
    thread.join(asked["seconds"])
    if not found:
        sys.exit("This takes too long.")
    json.dump(found[0], sys.stdout)


if __name__ == "__main__":
    main()
