"""Sizes, as names and shapes of weights tell them."""

HEADS = ("num_attention_heads", "attention_head_size")


def heads_of(shapes, heads):
    """The two keys of HEADS for so many heads."""
    width = shape_of(shapes, "emb.weight", 2)[1]
    return {"num_attention_heads": heads, "attention_head_size": width // max(heads, 1)}


def shape_of(shapes, name, dimensions):
    """The shape of `name`, which must be there with so many dimensions."""
    shape = shapes.get(name)
    if shape is None or len(shape) != dimensions:
        came = "it is missing" if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"'{name}' should have {dimensions} dimensions to tell the model's sizes. Received: {came}.")
    return tuple(shape)


def narrower(hidden_size):
    """The width of the channel mix in RWKV-5.1 to 6: 3.5 times the model's, down to a multiple of 32."""
    return int(hidden_size * 3.5) // 32 * 32
