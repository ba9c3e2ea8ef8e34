"""Of which shapes the tensors of a recurrence are. A letter is a size: B batch, T tokens, H heads, N, D channels."""

from dataclasses import dataclass

from bert4keras_rwkv.keras_loader import ops


@dataclass(frozen=True)
class Shapes:
    """What a recurrence takes. inputs: name -> letters of each input, in their order; state: the letters of a row's."""

    name: str
    inputs: dict
    state: str

    def fitted(self, xs, state, present, reset, start):
        """xs, state, present, reset, start, all as tensors, or None; a state or mask of batch 1 is that of every row.

        Raises:
            ValueError: one has another shape; the message says all that were expected, and came.
        """
        state, present, reset, start = (
            x if x is None or hasattr(x, "shape") else ops.convert_to_tensor(x) for x in (state, present, reset, start)
        )
        sizes = {"3": 3}
        fit = all(_binds(x.shape, word, sizes) for x, word in zip(xs, self.inputs.values(), strict=True))
        fit = fit and _binds(state.shape, f"B{self.state}", sizes, ("B",))
        fit = fit and all(x is None or _binds(x.shape, "BT", sizes, ("B",)) for x in (present, reset))
        if start is not None:
            letters = self.state if len(start.shape) == len(self.state) else f"B{self.state}"
            fit = fit and _binds(start.shape, letters, sizes, ("B",))
        if not fit:
            raise ValueError(self._message(xs, state=state, present=present, reset=reset, start=start))
        state, present, reset = (_for_all(x, xs[0]) for x in (state, present, reset))
        return xs, state, present, reset, start

    def _message(self, xs, **others):
        more = {"state": f"B{self.state}", "present": "BT", "reset": "BT", "start": self.state}
        expected = ", ".join(f"{name} ({', '.join(word)})" for name, word in (self.inputs | more).items())
        given = dict(zip(self.inputs, xs, strict=True)) | {name: x for name, x in others.items() if x is not None}
        came = ", ".join(f"{name} {tuple(x.shape)}" for name, x in given.items())
        return f"{self.name} takes {expected}; B may be 1 in those after the inputs. Received: {came}."


def _binds(shape, letters, sizes, may_be_one=()):
    """Whether a shape has these letters' sizes; one that is not known (yet) has every size."""
    if len(shape) != len(letters):
        return False
    for size, letter in zip(shape, letters, strict=True):
        known = isinstance(size, int) and not (size == 1 and letter in may_be_one)
        if known and isinstance(sizes.setdefault(letter, size), int) and sizes[letter] != size:
            return False
    return True


def _for_all(x, first):
    """x with the batch of the first input."""
    if x is None or not isinstance(x.shape[0], int) or x.shape[0] == first.shape[0] or x.shape[0] != 1:
        return x
    return ops.broadcast_to(x, (ops.shape(first)[0], *x.shape[1:]))
