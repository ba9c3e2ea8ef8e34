"""Whether the numbers of a plan can be."""

import math
from numbers import Integral, Real


def check_counts(plan, **least):
    """Fields of a plan are whole numbers, each at least what is said."""
    for name, low in least.items():
        value = getattr(plan, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
            raise ValueError(f"`{name}` is a whole number, at least {low}. Received: {name}={value!r}.")


def check_positive(plan, name, or_0=False):
    """A field of a plan is a finite number above 0, or 0 as well."""
    value = getattr(plan, name)
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not or_0):
        low = "not below 0" if or_0 else "above 0"
        raise ValueError(f"`{name}` is a finite number {low}. Received: {name}={value!r}.")
