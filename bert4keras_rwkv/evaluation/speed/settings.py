"""What is measured."""

from dataclasses import dataclass

ARRAY_BYTES = 1 << 29  # that are read from memory: far more than a cache
ROWS, INNER, COLUMNS = 512, 2048, 2048  # of a product
# What is asked about the machine in each round -> bytes, or operations, of the answer.
READ, PRODUCT = "read 2", "product 4"
OF_MACHINE = {READ: 2 * ARRAY_BYTES, PRODUCT: 4 * 2 * ROWS * INNER * COLUMNS}


@dataclass(frozen=True)
class Settings:
    """What is asked of every program.

    prompt: tokens that are read at once. decode: tokens that are written one by one. texts: numbers of texts that are
    written side by side, each `decode` tokens long. rounds: how often all of it is measured. threads: of each program,
    None: as many as it takes by itself, and one a core for the others and for the limits.
    """

    prompt: int = 512
    decode: int = 32
    texts: tuple[int, ...] = ()
    rounds: int = 5
    threads: int | None = None

    def __post_init__(self):
        given = {"prompt": self.prompt, "decode": self.decode, "rounds": self.rounds}
        given |= {"texts": self.texts} if any(not _counts(one) for one in self.texts) else {}
        given |= {} if self.threads is None else {"threads": self.threads}
        for name, value in given.items():
            if not _counts(value):
                raise ValueError(f"`{name}` of `Settings` is a whole number from 1. Received: {value!r}.")

    @property
    def commands(self):
        """What a program of a language model is asked in each round -> tokens of its answer."""
        asked = {f"prefill {self.prompt}": self.prompt, f"decode {self.decode}": self.decode}
        texts = dict.fromkeys(self.texts)
        return asked | {f"texts {self.decode} {count}": self.decode * count for count in texts}


def _counts(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
