"""The World vocabulary inside a GGUF file: escaped texts, with a type for each id.

llama.cpp's tokenizer for it finds the literal texts "<s>" and "[PAD65530]", which are ids of their own there and
ordinary text here; everything else both encode alike.
"""

import logging
import re

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

KIND = "rwkv"  # tokenizer.ggml.model
TURN = b"\n\n"  # ends a turn of a chat

ESCAPES = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
ESCAPED = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)

logger = logging.getLogger("bert4keras_rwkv")


def read_tokens(values):
    """{id: bytes} from the keys of a GGUF file; None if it has no World vocabulary, or only unused ids."""
    from gguf import Keys, TokenType

    texts = values.get(Keys.Tokenizer.LIST)
    if values.get(Keys.Tokenizer.MODEL) != KIND.encode() or not _list_of(texts, bytes):
        return None
    kinds = values.get(Keys.Tokenizer.TOKEN_TYPE)
    if not _list_of(kinds, int) or len(kinds) != len(texts):
        kinds = [TokenType.CONTROL] + [TokenType.NORMAL] * (len(texts) - 1)
    real = (TokenType.NORMAL, TokenType.USER_DEFINED)
    return {i: unescaped(text) for i, (text, kind) in enumerate(zip(texts, kinds, strict=True)) if kind in real} or None


def add_tokens(writer, tokenizer, size):
    """Give a `gguf.GGUFWriter` the vocabulary of a model with `size` ids, or ids without text for no tokenizer."""
    from gguf import TokenType

    texts = _texts(tokenizer, size)
    taken = set(texts.values())
    unused = {i: _free(f"[PAD{i}]", taken) for i in range(1, size) if i not in texts}
    every = {0: _free("<s>", taken)} | texts | unused
    kinds = [TokenType.UNUSED if i in unused else TokenType.NORMAL for i in range(size)]
    writer.add_tokenizer_model(KIND)
    writer.add_token_list([every[i] for i in range(size)])
    writer.add_token_types([TokenType.CONTROL, *kinds[1:]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    turn = next((i for i, text in texts.items() if text == escaped(TURN)), None)
    if turn is not None:
        writer.add_eot_token_id(turn)
        writer.add_chat_template("rwkv-world")


def _texts(tokenizer, size):
    """id -> escaped text of a World tokenizer's ids."""
    if tokenizer is None:
        return {}
    if not isinstance(tokenizer, RWKV_TOKENIZER) or tokenizer.end_token != 0:
        logger.warning(
            "%r is no World tokenizer, the only kind that GGUF has for RWKV: its texts are left out.", tokenizer
        )
        return {}
    gaps = set(tokenizer.without_text(size))
    return {i: escaped(tokenizer.token_bytes(i)) for i in range(1, size) if i not in gaps}


def escaped(token):
    """bytes -> the text of a token: Python's literal without its quotes."""
    return repr(token)[2:-1]


def unescaped(text):
    """The text of a token, as bytes -> bytes."""
    return ESCAPED.sub(_meant, text) if b"\\" in text else text


def _meant(found):
    digits, letter = found.groups()
    return bytes([int(digits, 16)]) if digits else ESCAPES.get(letter, letter)


def _list_of(values, kind):
    return isinstance(values, list) and len(values) > 0 and isinstance(values[0], kind)


def _free(text, taken):
    """`text`, changed until no token has it: llama.cpp ends the program where two have the same."""
    while text in taken:
        text = f"[{text}]"
    return text
