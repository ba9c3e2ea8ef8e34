"""A value that is computed once."""

from . import backend


def materialise(x):
    """`x` itself, written to memory where the compiler would rather compute it again for each of its users.

    XLA fuses cheap and dear operations alike into every consumer; on a CPU that can double the work.
    """
    if backend.name() == "jax":
        import jax

        return jax.lax.optimization_barrier(x)
    return x
