"""From tensors under official names to variables and back, by the table of a version. Loading is all or nothing."""

from functools import partial

import numpy as np

from bert4keras_rwkv.versions.table import IDENTITY, TRANSPOSE, filled
from bert4keras_rwkv.weights.copying import aligned, laid_out, place
from bert4keras_rwkv.weights.tensors import Tensor, Tensors, WeightsError, as_tensors, dtype_named, transposed

MOST_LINES = 20


def assign(rules, mapping, variables, progress=None, adopt=lambda array: array):
    """Fill `variables` (path -> object with `shape`, `dtype`, `assign(array)`) from `mapping` (official name -> array).

    One that is packed (it has a `scheme`) takes over a tensor that is packed alike by `assign_packed(arrays)`, and the
    rows of another one, as they are read, by `pack(pieces)`.

    All or nothing: every problem is found from shapes alone and told in one `WeightsError` before anything is
    assigned. Then one tensor at a time is read, cast to its variable's dtype and handed over as what `adopt` makes of
    the array. `progress(done, total)` follows.
    """
    tensors = as_tensors(mapping)
    wanted = filled(rules)
    ruled = {rule.path for rule in wanted}
    holes = [f"no rule fills '{path}'" for path in variables if path not in ruled]
    refuse(_misfits(rules, tensors.shapes, variables) + holes)
    for done, rule in enumerate(wanted, start=1):
        variable, entry = variables[rule.path], tensors.entry(rule.names[0])
        scheme = getattr(variable, "scheme", None)
        if scheme is None:
            variable.assign(adopt(_filled(rule, tensors, dtype_named(variable.dtype))))
        elif entry.packed is not None and entry.packed.scheme == scheme:
            variable.assign_packed(entry.packed.read())
        else:
            variable.pack(entry.pieces())
        if progress is not None:
            progress(done, len(wanted))


def variable_shapes(rules, shapes):
    """Path -> shape of the variables that tensors of these shapes (official name -> shape) fill.

    A missing or extra name, or a shape that its rule cannot use, is a `WeightsError` with all of them.
    """
    refuse(_misfits(rules, shapes))
    return {rule.path: tuple(_loaded_shape(rule, shapes)) for rule in filled(rules)}


def export(rules, get_variable):
    """A model's variables as lazy `Tensors` under official names, in the order of a released file.

    `get_variable(path)` gives an object with `shape` and `dtype` that NumPy turns into an array when a tensor is read.
    """
    entries = {}
    for rule in filled(rules):
        variable = get_variable(rule.path)
        if isinstance(variable, Tensor) and rule.transform in (IDENTITY, TRANSPOSE):  # large ones are read in pieces
            entries[rule.names[0]] = transposed(variable) if rule.transform is TRANSPOSE else variable
            continue
        dtype = dtype_named(variable.dtype)
        hollow = _parts(rule.transform.save(_hollow(tuple(variable.shape))))
        for index, (name, part) in enumerate(zip(rule.names, hollow, strict=True)):
            shape = part.shape
            entries[name] = Tensor(shape, dtype, _reader(variable, rule.transform, index, dtype))
    return Tensors(entries)


def in_order(rules, mapping):
    """`mapping` in the order of a released file, which programs that take tensors by position rely on.

    A missing or extra name, or one whose shape its rule cannot use, is a `WeightsError` with all of them.
    """
    refuse(_misfits(rules, mapping.shapes))
    names = (name for rule in rules for name in rule.names if name in mapping)
    return Tensors({name: mapping.entry(name) for name in names}, mapping.metadata)


def to_variables(rules, mapping):
    """The other way round: `mapping` (official name -> array) as lazy `Tensors` under attribute paths.

    A missing or extra name, or one whose shape its rule cannot use, is a `WeightsError` with all of them.
    """
    shapes, dtypes = mapping.shapes, mapping.dtypes
    refuse(_misfits(rules, shapes))
    entries = {}
    for rule in filled(rules):
        if len(rule.names) == 1 and rule.transform in (IDENTITY, TRANSPOSE):
            entry = mapping.entry(rule.names[0])
            entries[rule.path] = transposed(entry) if rule.transform is TRANSPOSE else entry
            continue
        dtype = np.result_type(*(dtypes[name] for name in rule.names))
        entries[rule.path] = Tensor(_loaded_shape(rule, shapes), dtype, partial(_filled, rule, mapping, dtype))
    return Tensors(entries, mapping.metadata)


def _misfits(rules, shapes, variables=None):
    """Every reason why the file does not fit, as lines. Without variables only names and usable shapes are compared."""
    known = {name for rule in rules for name in rule.names}
    lines = [f"no rule for '{name}' in the file" for name in shapes if name not in known]
    for rule in filled(rules):
        variable = None if variables is None else variables.get(rule.path)
        absent = [name for name in rule.names if name not in shapes]
        source = ", ".join(f"'{name}'" for name in rule.names)
        if variables is not None and variable is None:
            lines.append(f"the model has no '{rule.path}' for {source}")
        elif absent:
            lines.append(f"nothing in the file fills '{rule.path}' ({', '.join(absent)})")
        else:
            gives = _loaded_shape(rule, shapes)
            wants = gives if variable is None else tuple(variable.shape)
            if gives is None or gives != wants:
                came = " and ".join(str(tuple(shapes[name])) for name in rule.names) if gives is None else gives
                wants = "another shape" if wants is None else wants
                lines.append(f"'{rule.path}' wants {wants}, {source} gives {came}")
    return lines


def _filled(rule, tensors, dtype):
    """The array of one variable, read and cast; a large tensor piece by piece, straight to where it belongs."""
    if len(rule.names) > 1 or rule.transform not in (IDENTITY, TRANSPOSE):
        return laid_out(rule.transform.load(*(tensors[name] for name in rule.names)), dtype)
    entry = tensors.entry(rule.names[0])
    turned = rule.transform is TRANSPOSE
    array = aligned(entry.shape[::-1] if turned else entry.shape, dtype)
    if turned and entry.columns is not None:  # it lies in the file as the variable wants it
        entry, turned = transposed(entry), False
    for start, rows in entry.pieces():
        target = array.T if turned else array
        place(target[start : start + len(rows)] if entry.shape else target, rows)
    return array


def refuse(lines):
    """Raise the one message, if there is anything to say."""
    if not lines:
        return
    more = f"\n  and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
    count = "1 weight does" if len(lines) == 1 else f"{len(lines)} weights do"
    raise WeightsError(f"{count} not fit:\n  " + "\n  ".join(lines[:MOST_LINES]) + more)


def _loaded_shape(rule, shapes):
    """The shape a rule makes of its tensors, or None if it cannot use theirs."""
    try:
        return rule.transform.load(*(_hollow(tuple(shapes[name])) for name in rule.names)).shape
    except (ValueError, IndexError):
        return None


def _hollow(shape):
    """An array of this shape that takes one byte: enough to ask a transform for the shape of its answer."""
    return np.broadcast_to(np.zeros((), np.int8), shape)


def _parts(saved):
    """What `transform.save` gives, always a tuple."""
    return saved if isinstance(saved, tuple) else (saved,)


def _reader(variable, transform, index, dtype):
    """A function that reads one official tensor out of a variable."""
    return lambda: laid_out(_parts(transform.save(np.asarray(variable)))[index], dtype)
