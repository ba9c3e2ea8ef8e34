"""The ids of messages as a chat reads them."""


def prompt_ids(tokenizer, template, message, mode=None, opening=False):
    """The ids of a message and of what a reply comes after, a list of int: each `Part` by itself, as in training.

    template: a `Template`. mode: a key of its `modes`, None for the usual one. opening: what stands before everything
    is there, too, but not its dialogue.
    """
    parts = template.opening(dialogue=False) if opening else []
    parts += [*template.turn("user", message, mode), *template.turn("assistant", mode=mode)]
    return ids_of_parts(tokenizer, parts)


def ids_of_parts(tokenizer, parts):
    """The ids of `Part`s, each encoded by itself, a list of int."""
    return [one for ids in tokenizer.encode([part.text for part in parts]) for one in ids]
