"""`info`: version, sizes, dtype, parameters, state and memory of a weight file, without loading the weights; the sizes
of a state or an adapter. With a strategy, what of it would go where, for which a backend is asked for its devices.
"""

import json

from bert4keras_rwkv.cli.arguments import UsageError
from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.versions.shapes import HEADS
from bert4keras_rwkv.weights.adapters import adapter_sizes
from bert4keras_rwkv.weights.checkpoint import named
from bert4keras_rwkv.weights.part_files import may_be_part, open_part
from bert4keras_rwkv.weights.states import state_sizes
from bert4keras_rwkv.weights.summary import summarise


def run(arguments):
    """Print what the file holds, for people or with `--json` for programs."""
    file = named(arguments.file)
    part = part_of(file)
    if arguments.strategy is not None:
        if part is not None:
            raise UsageError(f"--strategy is for whole models, and '{file}' is a state or an adapter.")
        plan = planned(arguments, file)
        print(json.dumps(plan.to_dict(), indent=2) if arguments.json else plan)
        return
    if part is not None:
        print(json.dumps(part, indent=2) if arguments.json else _part_as_text(part))
        return
    summary = summarise(file, arguments.format)
    print(json.dumps(as_json(summary), indent=2) if arguments.json else as_text(summary))


def planned(arguments, file):
    """The `Plan` of `--strategy`."""
    choose_engine(arguments.engine)
    from bert4keras_rwkv.models.plan import plan_of

    return plan_of(file, arguments.strategy, arguments.format)


def part_of(file):
    """What a state or an adapter holds, as plain values; None for a whole model and for what is neither."""
    if not may_be_part(file):
        return None
    with open_part(file) as tensors:
        sizes = state_sizes(tensors) or adapter_sizes(tensors, file)
        return sizes and {"file": str(file), **sizes, "stored_bytes": tensors.nbytes}


def _part_as_text(part):
    """What `part_of` gives, in lines."""
    rows = {**part, "stored": size(part["stored_bytes"])}
    lists = {name: ", ".join(map(str, value)) for name, value in rows.items() if isinstance(value, list)}
    shown = {name: value for name, value in (rows | lists).items() if name not in ("file", "stored_bytes")}
    return "\n".join([part["file"], *(f"  {name.replace('_', ' '):<24}{value}" for name, value in shown.items())])


def as_json(summary):
    """A `Summary` as plain values. Memory is what weights and one state take; activations come on top."""
    return {
        "file": summary.file,
        "format": summary.format,
        **summary.config.to_dict(),
        "parameters": summary.parameters,
        "dtypes": summary.dtypes,
        "stored_bytes": summary.stored_bytes,
        "state_bytes": summary.state_bytes,
        "memory_bytes": {"float32": summary.memory(4), "half": summary.memory(2)},
        **({"packed": summary.packed} if summary.packed else {}),
        **({"kept": summary.kept} if summary.kept else {}),
    }


def as_text(summary):
    """A `Summary` in lines."""
    c = summary.config
    dtypes = ", ".join(f"{share} in {dtype}" for dtype, share in sorted(summary.dtypes.items()))
    heads = f" ({c.num_attention_heads} heads of {c.attention_head_size})" if c.num_attention_heads else ""
    rows = {
        "format": summary.format,
        "model": f"{c.model}, {c.num_hidden_layers} layers, vocabulary {c.vocab_size}",
        "width": f"{c.hidden_size}{heads}, channel mix {c.intermediate_size}",
        **{name.replace("_", " "): value for name, value in c.own if name not in HEADS},
        "dtype": summary.dtype if len(summary.dtypes) == 1 else f"mixed: {dtypes}",
        "parameters": f"{summary.parameters:,}",
        "stored": size(summary.stored_bytes),
        "state": f"{size(summary.state_bytes)} a sequence",
        "memory": f"{size(summary.memory(4))} computed in float32, {size(summary.memory(2))} in bfloat16 or float16",
        **_of_packing(summary),
    }
    return "\n".join([summary.file, *(f"  {name:<24}{value}" for name, value in rows.items())])


def _of_packing(summary):
    """The lines about matrices in fewer bytes; none where there are none."""
    packed = ", ".join(f"{share:,} in {name}" for name, share in summary.packed.items())
    kept = "; ".join(f"{kind} as {name}" for kind, name in summary.kept.items())
    return {name: said for name, said in (("quantised", packed), ("quantization='keep'", kept)) if said}


def size(number):
    """Bytes as people say them: 3.21 GB."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
