"""The ids of a message as a chat reads it."""


def prompt_ids(tokenizer, template, message, mode=None, opening=False):
    """The ids of a message and of what a reply comes after, a list of int: each `Part` by itself, as in training.

    template: a `Template`. mode: a key of its `modes`, None for the usual one. opening: what stands before everything
    is there, too, but not its dialogue.
    """
    parts = template.opening(dialogue=False) if opening else []
    parts += [*template.turn("user", message, mode), *template.turn("assistant", mode=mode)]
    return [one for ids in tokenizer.encode([part.text for part in parts]) for one in ids]
