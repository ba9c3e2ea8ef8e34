"""Conversations: a template and a `Session`, and every turn can be gone back to."""

from bert4keras_rwkv.public_names import public_names

__getattr__, __dir__, __all__ = public_names(
    __name__, {"Chat": ".conversation", "ChatStream": ".conversation", "Turn": ".turns"}
)
