"""Text to token ids and back: the World tokenizer, its vocabulary files, and text from a stream of ids.

Needs no backend and no NumPy; importing it reads no file.
"""

from bert4keras_rwkv.tokenizers.find import VOCABULARY_NAME, find_tokenizer
from bert4keras_rwkv.tokenizers.text_stream import TextStream
from bert4keras_rwkv.tokenizers.world import RWKV_TOKENIZER

__all__ = ["RWKV_TOKENIZER", "VOCABULARY_NAME", "TextStream", "find_tokenizer"]
