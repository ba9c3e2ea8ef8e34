"""A conversation by lines, as a person types them: messages and commands in, events out. It knows no terminal."""

from bert4keras_rwkv.public_names import public_names

__getattr__, __dir__, __all__ = public_names(
    __name__,
    {
        "Conversation": ".conversation",
        "Begun": ".events",
        "Ended": ".events",
        "Left": ".events",
        "Piece": ".events",
        "Refused": ".events",
        "Said": ".events",
        "Table": ".events",
        "Thinking": ".events",
    },
)
