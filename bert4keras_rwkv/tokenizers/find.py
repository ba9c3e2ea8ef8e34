"""Which vocabulary belongs to a model: the file beside its weights, else the World one if the sizes say so."""

import logging
from pathlib import Path

from bert4keras_rwkv.tokenizers.pile import JSON_NAME, PileTokenizer
from bert4keras_rwkv.tokenizers.vocabulary import VOCABULARY_NAME, is_listed, is_numbered, world_path
from bert4keras_rwkv.tokenizers.world import RWKV_TOKENIZER
from bert4keras_rwkv.untrusted import regular

PILE_NAME = "20B_tokenizer.json"
# Rows of an embedding for the World vocabulary: 65,529 tokens, the end of a document, and up to six unused ones.
WORLD_SIZES = range(65529, 65537)
# The same for the Pile's: 50,277 ids, or as many as GPT-NeoX pads them to.
PILE_SIZES = range(50277, 50433)

logger = logging.getLogger("bert4keras_rwkv")


def load_tokenizer(path):
    """The tokenizer in a vocabulary file, told by its content: a `PileTokenizer` in JSON, else an `RWKV_TOKENIZER`.

    Raises:
        ValueError: it is neither, or damaged (with the line).
        ImportError: it needs `tokenizers`, which is not installed.
    """
    with open(regular(path, "Vocabularies"), "rb") as file:
        start = file.read(1)
    return PileTokenizer(path) if start == b"{" else RWKV_TOKENIZER(path)


def find_tokenizer(near, vocab_size, held=None, named=None):
    """The tokenizer of a model, or None if there is none to be found.

    Args:
        near: the model's weights file or its folder; a vocabulary in that folder is taken if its ids fit the model:
            `rwkv_vocab_*.txt` or `vocab.txt` in World format, `20B_tokenizer.json` or `tokenizer.json` of the Pile's
            models. None: look nowhere.
        vocab_size: rows of the model's embedding. World sizes fall back to the vocabulary of the `rwkv` package.
        held: the World vocabulary inside the weights file itself, {id: bytes}: the first to be taken. None: none.
        named: the vocabulary file that belongs to the weights, which comes before others beside them. None: not known.

    Raises:
        ValueError: a file that looks like a vocabulary is damaged (with the line).
    """
    if held:
        return RWKV_TOKENIZER.from_entries(held)
    for path in [*([] if named is None else [named]), *vocabulary_files(near, vocab_size)]:
        tokenizer = _loaded(path)
        if tokenizer is not None and _fits(tokenizer, vocab_size, path):
            return tokenizer
    if vocab_size in WORLD_SIZES:
        try:
            return RWKV_TOKENIZER(world_path())
        except FileNotFoundError as error:
            logger.warning("The model has no tokenizer. %s", error)
    elif vocab_size in PILE_SIZES and near is not None:
        logger.warning("The model has no tokenizer. Put the Pile's %s beside its weights, or name it.", PILE_NAME)
    return None


def vocabulary_files(near, vocab_size):
    """The vocabulary files in the folder `near`, or in that of a file, those first that the size speaks for."""
    if near is None:
        return []
    folder = Path(near) if Path(near).is_dir() else Path(near).parent
    texts = [*sorted(folder.glob("rwkv_vocab_*.txt")), folder / VOCABULARY_NAME]
    lines = [path for path in texts if is_numbered(path) or is_listed(path)]
    if vocab_size in WORLD_SIZES:
        return lines
    jsons = [folder / name for name in (PILE_NAME, JSON_NAME) if (folder / name).is_file()]
    return jsons + lines if vocab_size in PILE_SIZES else lines + jsons


def _loaded(path):
    """The tokenizer in a file; None, with the reason in the log, where other programs may mean something else by it."""
    try:
        return load_tokenizer(path)
    except ImportError as error:
        logger.warning("Not used: %s. %s", path, error)
    except ValueError as error:
        if path.name != JSON_NAME and not is_listed(path):
            raise
        logger.warning("Not used: %s", error)
    return None


def _fits(tokenizer, vocab_size, path):
    """Whether the model has a row for every id. World models may lack rows for a few that are never used."""
    if tokenizer.vocab_size <= vocab_size or (vocab_size in WORLD_SIZES and tokenizer.vocab_size - 1 in WORLD_SIZES):
        return True
    logger.warning("%s has ids up to %d, the model %d rows: not used.", path, tokenizer.vocab_size - 1, vocab_size)
    return False
