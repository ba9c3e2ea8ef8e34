"""`RWKV_TOKENIZER` as the programs of bert4keras3's guide call it."""

from bert4keras_rwkv import tokenizers

__all__ = ["RWKV_TOKENIZER"]


class RWKV_TOKENIZER(tokenizers.RWKV_TOKENIZER):
    """The World tokenizer, whose `encode` gives a list of texts' ids, for one text too: `encode(text)[0]`.

    `encode_text(text)` gives the ids of one text. Everything else is as in `bert4keras_rwkv.tokenizers`.
    """

    def encode(self, src):
        """str or a list of str -> a list with a list of ids for each text."""
        return super().encode([src] if isinstance(src, str) else src)

    def encodeBytes(self, src):
        """bytes -> list of ids."""
        return self.encode_bytes(src)

    def decodeBytes(self, tokens):
        """ids -> bytes."""
        return self.decode_bytes(tokens)

    def printTokens(self, tokens):
        """Show ids, each behind its text or bytes."""
        for token_id in tokens:
            token = self.token_bytes(token_id)
            print(f"{_text(token)!r}{token_id}", end=" ")
        print()

    @property
    def idx2token(self):
        """{id: bytes}."""
        return self._entries()

    @property
    def token2idx(self):
        """{bytes: id}."""
        return dict(self._ids)


def _text(token):
    """A token as a str, where its bytes are one."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return token
