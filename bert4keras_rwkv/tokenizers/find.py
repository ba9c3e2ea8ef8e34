"""Which vocabulary belongs to a model: the file beside its weights, else the World one if the sizes say so."""

import logging
from pathlib import Path

from bert4keras_rwkv.tokenizers.vocabulary import world_path
from bert4keras_rwkv.tokenizers.world import RWKV_TOKENIZER

# What a preset folder calls its vocabulary.
VOCABULARY_NAME = "vocab.txt"
# Rows of an embedding for the World vocabulary: 65,529 tokens, the end of a document, and up to six unused ones.
WORLD_SIZES = range(65529, 65537)

logger = logging.getLogger("bert4keras_rwkv")


def find_tokenizer(near, vocab_size):
    """The tokenizer of a model, or None if there is none to be found.

    Args:
        near: the model's weights file or its folder; a `rwkv_vocab_*.txt` or a World-format `vocab.txt` in that folder
            is taken if its ids fit the model. None: look nowhere.
        vocab_size: rows of the model's embedding. World sizes fall back to the vocabulary of the `rwkv` package.

    Raises:
        ValueError: a file that looks like a vocabulary is damaged (with the line).
    """
    for path in _candidates(near):
        tokenizer = RWKV_TOKENIZER(path)
        if tokenizer.vocab_size <= vocab_size or (
            vocab_size in WORLD_SIZES and tokenizer.vocab_size - 1 in WORLD_SIZES
        ):
            return tokenizer
        logger.warning("%s has ids up to %d, the model %d rows: not used.", path, tokenizer.vocab_size - 1, vocab_size)
    if vocab_size in WORLD_SIZES:
        try:
            return RWKV_TOKENIZER(world_path())
        except FileNotFoundError as error:
            logger.warning("The model has no tokenizer. %s", error)
    return None


def _candidates(near):
    if near is None:
        return []
    folder = Path(near) if Path(near).is_dir() else Path(near).parent
    return [
        path for path in [*sorted(folder.glob("rwkv_vocab_*.txt")), folder / VOCABULARY_NAME] if _world_format(path)
    ]


def _world_format(path):
    """Does the first line read `id literal length`? Other projects' `vocab.txt` have other lines."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        words = file.readline(1000).split()
    return len(words) >= 3 and words[0].isdigit() and words[-1].isdigit()
