"""All beginnings of a text, as names by which states are found: a chain of hashes over blocks of its ids."""

import hashlib
import json
from typing import NamedTuple

import numpy as np

BLOCK = 32  # ids in a link of the chain
WIDTH = 4  # bytes of an id
LINK = 20  # bytes of a hash


class Key(NamedTuple):
    """Which text it is. chain: the hash of all whole blocks, and of what stands before the text; tail: the ids behind
    them, fewer than a block, as bytes.
    """

    chain: bytes
    tail: bytes


def root(*parts):
    """Where a chain begins: another hash for other parts, all str."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=LINK).digest()


class Prefixes:
    """A text that begins at `root`.

    data: its ids, little-endian int32. chains: the hashes after 0, 1, 2, ... whole blocks.
    """

    def __init__(self, ids, root):
        self.data = np.asarray(ids, "<i4").tobytes()
        self.chains, link, size = [root], root, BLOCK * WIDTH
        for at in range(0, len(self.data) - size + 1, size):
            link = hashlib.blake2b(link + self.data[at : at + size], digest_size=LINK).digest()
            self.chains.append(link)

    @property
    def key(self):
        """The name of the whole text."""
        return Key(self.chains[-1], self.data[(len(self.chains) - 1) * BLOCK * WIDTH :])

    def keys(self, blocks):
        """The names of the beginnings of so many whole blocks and less than one more, the longest first."""
        start = blocks * BLOCK * WIDTH
        rest = self.data[start : start + (BLOCK - 1) * WIDTH]
        return [Key(self.chains[blocks], rest[:end]) for end in range(len(rest), -1, -WIDTH)]


def count(blocks, key):
    """How many ids a key of so many whole blocks stands for."""
    return blocks * BLOCK + len(key.tail) // WIDTH
