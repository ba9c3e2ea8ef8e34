"""Text to token ids and back: the World tokenizer and the Pile's, their files, and text from a stream of ids.

Needs no backend and no NumPy; importing it reads no file.
"""

from bert4keras_rwkv.tokenizers.base import Tokenizer
from bert4keras_rwkv.tokenizers.find import find_tokenizer, load_tokenizer
from bert4keras_rwkv.tokenizers.pile import PileTokenizer
from bert4keras_rwkv.tokenizers.text_stream import TextStream
from bert4keras_rwkv.tokenizers.vocabulary import VOCABULARY_NAME
from bert4keras_rwkv.tokenizers.world import RWKV_TOKENIZER

__all__ = [
    "RWKV_TOKENIZER",
    "VOCABULARY_NAME",
    "PileTokenizer",
    "TextStream",
    "Tokenizer",
    "find_tokenizer",
    "load_tokenizer",
]
