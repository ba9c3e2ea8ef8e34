"""Generation: prefill, then one step again and again. The step is the same in the compiled loop and when streaming.

The loop knows a `network` with two functions, and neither text nor model classes:

    network.hidden(ids (B, T) int32, state, present (B, T) bool) -> (hidden (B, D) at each row's last real token, state)
    network.logits(hidden (B, D)) -> (B, V)

One rule holds from the first step to the last: **the state has consumed every token of a row but the last**, which
waits as `Carry.token`. A step consumes it and writes the next one. So a row's last id is the first id of the next call,
whether or not anything was generated, and going on is bit for bit what one longer call would have done.
"""

from typing import Any, NamedTuple

from bert4keras_rwkv.generation.draw import draw
from bert4keras_rwkv.generation.penalties import forbid, forbid_again, pace, penalise_frequency, penalise_repetition
from bert4keras_rwkv.keras_loader import ops

CHUNKS = (256, 32)
SHORTEST_BUFFER = 64


class Carry(NamedTuple):
    """What a step takes and returns: a pytree of tensors."""

    ids: Any  # (B, L) int32, the text so far, then fill
    token: Any  # (B,) int32, the last token, not consumed yet
    position: Any  # (B,) int32, where the next token goes: the length of the text so far
    start: Any  # (B,) int32, where the first generated token went
    limit: Any  # (B,) int32, the row ends when `position` reaches it
    live: Any  # (B,) bool, the row has not ended
    seeds: Any  # (B, 2) int32, (seed, tokens generated before)
    state: Any  # the network's, nested
    finite: Any  # (B,) bool, the row's logits were numbers so far; one whose were not has ended


def front_pack(ids, present, fill=0):
    """Move the real tokens of each row to its front, in order, and put `fill` behind them.

    ids: (B, L) int32. present: (B, L) bool. Returns ids and the number of real tokens, (B,) int32.
    """
    length = ids.shape[1]
    at = ops.expand_dims(ops.arange(length, dtype="int32"), 0)
    count = ops.sum(ops.cast(present, "int32"), axis=1)
    order = ops.cast(ops.argsort(ops.where(present, at, at + length), axis=1), "int32")
    packed = ops.take_along_axis(ids, order, axis=1)
    return ops.where(at < ops.expand_dims(count, 1), packed, fill), count


def prefill(network, ids, length, state, chunks=CHUNKS, hidden=None):
    """Consume the first `length` tokens of each row.

    Reads in pieces of the first size in `chunks` while the longest row fills one, then in pieces of the next; the last
    size reads the rest. The program is the same for every prompt length, and the work follows the longest prompt.

    ids: (B, L) int32, real tokens first. length: (B,) int32. state: nested. chunks: an int, or ints in falling order.
    hidden: (B, D), wanted if not None: returned with each row's hidden vector at its last consumed token in the rows
    that have one. Returns (hidden, state).
    """
    sizes = _sizes(chunks, ids.shape[1])
    padded = ops.pad(ids, ((0, 0), (0, sizes[-1])))
    longest = ops.max(length)
    at = ops.zeros_like(longest)
    carried = (state,) if hidden is None else (state, hidden)
    for size in sizes:
        read = size if size != sizes[-1] else 1
        at, carried = _read_pieces(network, padded, length, at, longest - read, size, carried)
    return (None if hidden is None else carried[1]), carried[0]


def chunks_for(length):
    """`CHUNKS` but those that no prompt of these lengths, (B,) NumPy, fills: a program has a network for each."""
    longest = max(length) - 1
    return (*(size for size in CHUNKS[:-1] if size <= longest), CHUNKS[-1])


def buffer_length(length):
    """The length of a buffer for `length` tokens: a power of two, so that few programs are compiled."""
    return max(SHORTEST_BUFFER, 1 << (length - 1).bit_length())


def _sizes(chunks, length):
    """The chunk sizes that a buffer of `length` can use."""
    sizes = tuple(chunks) if isinstance(chunks, tuple | list) else (chunks,)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes) or list(sizes) != sorted(sizes)[::-1]:
        raise ValueError(
            "`chunks` is the number of tokens read at once, an int of at least 1, or several in falling order. "
            f"Received: chunks={chunks!r}. Use {CHUNKS}."
        )
    return tuple(size for size in sizes if size <= length) or (length,)


def _read_pieces(network, ids, length, at, last, size, carried):
    """Read pieces of `size` tokens, from `at`, while they begin at or before `last`. Returns where it stopped,
    carried."""

    def more(at, *carried):
        return at <= last

    def read(at, *carried):
        places = at + ops.arange(size, dtype="int32")
        present = ops.expand_dims(places, 0) < ops.expand_dims(length, 1)
        new, state = network.hidden(ops.take(ids, places, axis=1), carried[0], present)
        if len(carried) == 1:
            return at + size, state
        here = ops.expand_dims(length > at, 1)
        return at + size, state, ops.where(here, ops.cast(new, carried[1].dtype), carried[1])

    at, *carried = ops.while_loop(more, read, (at, *carried))
    return at, tuple(carried)


def begin(network, ids, length, limit, state, seeds, chunks=CHUNKS):
    """Prefill, and the carry before the first step.

    ids: (B, L) int32 from `front_pack`, length: (B,) int32. limit: (B,) int32, at most L positions of each row are
    filled; not part of the program's shape. state: nested. seeds: (B, 2) int32. Rows without a token stay as they are.
    """
    consumed = ops.where(length > 0, length - 1, 0)
    _, state = prefill(network, ids, consumed, state, chunks)
    return started(ids, length, limit, state, seeds)


def started(ids, length, limit, state, seeds):
    """The carry before the first step, with a state that has consumed all of each row but the last token."""
    consumed = ops.where(length > 0, length - 1, 0)
    token = ops.take_along_axis(ids, ops.expand_dims(consumed, 1), axis=1)[:, 0]
    limit = ops.where(limit < ids.shape[1], limit, ids.shape[1])
    live = ops.logical_and(length > 0, length < limit)
    return Carry(ids, token, length, length, limit, live, seeds, state, ops.ones_like(live))


def advance(network, plan, ends, carry, values):
    """One step: consume the last token of each live row and write the next one. Rows that have ended stay as they are,
    and a row whose logits are not finite ends without a token.

    plan, values: of a `Sampling`. ends: (E,) int32, ids that end a row; -1 ends none. Returns the next carry.
    """
    present = ops.expand_dims(carry.live, 1)
    hidden, state = network.hidden(ops.expand_dims(carry.token, 1), carry.state, present)
    return written(network, plan, ends, carry._replace(state=state), hidden, values)


def written(network, plan, ends, carry, hidden, values):
    """The second half of a step: from the hidden vectors (B, D) of each row's last token to the next carry."""
    logits = ops.cast(network.logits(hidden), "float32")
    finite = ops.all(logits < float("inf"), axis=1)  # false for NaN, too
    writes = ops.logical_and(carry.live, finite)
    token = ops.where(writes, next_token(logits, plan, carry, values), carry.token)
    at = ops.arange(carry.ids.shape[1], dtype="int32")
    here = ops.logical_and(ops.equal(at, ops.expand_dims(carry.position, 1)), ops.expand_dims(writes, 1))
    one = ops.cast(writes, "int32")
    position = carry.position + one
    ended = ops.any(ops.equal(ops.expand_dims(token, 1), ops.convert_to_tensor(ends, "int32")), axis=1)
    live = ops.logical_and(ops.logical_and(writes, position < carry.limit), ops.logical_not(ended))
    return carry._replace(
        ids=ops.where(here, ops.expand_dims(token, 1), carry.ids),
        token=token,
        position=position,
        live=live,
        seeds=ops.stack([carry.seeds[:, 0], carry.seeds[:, 1] + one], 1),
        finite=ops.logical_and(carry.finite, ops.logical_or(finite, ops.logical_not(carry.live))),
    )


def next_token(logits, plan, carry, values):
    """Penalties, forbidden ids, then the draw. logits: (B, V) float32 -> (B,) int32.

    Of the carry only `ids`, `position`, `start` and `seeds` count.
    """
    if plan.penalty:
        logits = penalise_repetition(
            logits, carry.ids, carry.position, values["penalty"], values["penalty_window"], plan.max_penalty_range
        )
    if plan.frequency:
        names = ("presence_penalty", "frequency_penalty", "penalty_decay")
        numbers = [values[name] for name in names]
        logits = penalise_frequency(logits, carry.ids, carry.start, carry.position, *numbers, plan.penalty_free)
    if plan.newline:
        logits = pace(logits, carry.position - carry.start, values["newline"])
    if plan.no_repeat:
        logits = forbid_again(logits, last_token(carry), values["no_repeat"])
    if plan.mask_output:
        logits = forbid(logits, plan.mask_output)
    return draw(logits, plan, values, carry.seeds)


def last_token(carry):
    """The id before `position`, (B,) int32; -1 where there is none."""
    before = ops.expand_dims(carry.position - 1, 1)
    last = ops.take_along_axis(carry.ids, ops.maximum(before, 0), axis=1)
    return ops.where(before < 0, -1, last)[:, 0]


def generate(network, plan, ends, ids, length, limit, state, seeds, values, chunks=CHUNKS, report=None):
    """Prefill and steps until every row has ended, for use inside a compiled function.

    Arguments as in `begin` and `advance`. report: called with the carry after each step, for its side effect.
    Returns the last carry.
    """
    carry = begin(network, ids, length, limit, state, seeds, chunks)

    def going(*carry):
        return ops.any(Carry(*carry).live)

    def step(*carry):
        new = advance(network, plan, ends, Carry(*carry), values)
        if report is not None:
            report(new)
        return tuple(new)

    return Carry(*ops.while_loop(going, step, tuple(carry)))
