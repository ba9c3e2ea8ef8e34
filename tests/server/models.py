"""Small models for the tests of the server."""

from tests.test_chat import talker


def endless():
    """A model that never ends a text by itself."""
    rwkv = talker()
    rwkv.tokenizer.end_token = None
    return rwkv
