"""What a version says of itself, without Keras. How it computes is in the file of the same name in `layers`."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Version:
    """A version of RWKV.

    name: 'rwkv6', as in `build_transformer_model(model=...)`. numbers: what it is called, more than one if it has
    variants: '5.0', '5.1', '5.2'.
    keys: its config keys beyond those of every model; name -> the values it may have, None for a positive whole number.
    number_of(shapes): which of `numbers` has weights of these official names and shapes; None if it is none of them.
    sizes(shapes, number): the values of `keys`.
    defaults(hidden_size, keys): name -> value, those of released models of this width. keys: the config keys given.
    rules(config): its table, a list of `Rule` in the order of a released file.
    """

    name: str
    numbers: tuple
    keys: dict
    number_of: Callable
    sizes: Callable
    defaults: Callable
    rules: Callable
