"""Turns as ids, as a chat reads them."""


def prompt_ids(tokenizer, template, message, mode=None, opening=False):
    """The ids of a message and of what a reply comes after, a list of int: each `Part` by itself, as in training.

    template: a `Template`. mode: a key of its `modes`, None for the usual one. opening: what stands before everything
    is there, too, but not its dialogue.
    """
    parts = template.opening(dialogue=False) if opening else []
    parts += [*template.turn("user", message, mode), *template.turn("assistant", mode=mode)]
    return ids_of(tokenizer, parts)


def ids_of(tokenizer, parts):
    """The ids of `Part`s, a list of int: each is encoded by itself, as in training."""
    return [one for ids in tokenizer.encode([part.text for part in parts]) for one in ids]


def end_of_reply(tokenizer, template, written, said):
    """The ids that a reply still lacks before another turn: text in whose last token a stop began, and what ends it.

    written: the ids of the tokens that were shown whole. said: all text that was shown.
    """
    rest, end = said[len(tokenizer.decode(written)) :], template.after_reply
    begun = next(n for n in range(len(end), -1, -1) if said.endswith(end[:n]))
    return tokenizer.encode(rest + end[begun:])
