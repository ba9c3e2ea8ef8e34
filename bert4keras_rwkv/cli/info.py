"""`info`: version, sizes, dtype, parameters, state and memory of a weight file, without loading the weights."""

import json

from bert4keras_rwkv.config import HEADS, OWN_KEYS
from bert4keras_rwkv.weights.files import named
from bert4keras_rwkv.weights.summary import summarise


def run(arguments):
    """Print what the file holds, for people or with `--json` for programs."""
    summary = summarise(named(arguments.file), arguments.format)
    print(json.dumps(as_json(summary), indent=2) if arguments.json else as_text(summary))


def as_json(summary):
    """A `Summary` as plain values. Memory is what weights and one state take; activations come on top."""
    state = summary.state_bytes
    return {
        "file": summary.file,
        "format": summary.format,
        **summary.config.to_dict(),
        "parameters": summary.parameters,
        "dtypes": summary.dtypes,
        "stored_bytes": summary.stored_bytes,
        "state_bytes": state,
        "memory_bytes": {"float32": 4 * summary.parameters + state, "half": 2 * summary.parameters + state},
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
        **{name.replace("_", " "): getattr(c, name) for name in OWN_KEYS[c.model] if name not in HEADS},
        "dtype": summary.dtype if len(summary.dtypes) == 1 else f"mixed: {dtypes}",
        "parameters": f"{summary.parameters:,}",
        "stored": size(summary.stored_bytes),
        "state": f"{size(summary.state_bytes)} a sequence",
        "memory": f"{size(4 * summary.parameters + summary.state_bytes)} computed in float32, "
        f"{size(2 * summary.parameters + summary.state_bytes)} in bfloat16 or float16",
    }
    return "\n".join([summary.file, *(f"  {name:<24}{value}" for name, value in rows.items())])


def size(number):
    """Bytes as people say them: 3.21 GB."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
