"""What a weight file holds, from its names and shapes: no tensor is read."""

from dataclasses import dataclass

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights.checkpoint import open_checkpoint
from bert4keras_rwkv.weights.packed import OFFERED, becomes, halves_of, title
from bert4keras_rwkv.weights.tensors import count


@dataclass(frozen=True)
class Summary:
    """The format's title, version and sizes, how many parameters, how many of each dtype, and the bytes as stored.

    packed: how matrices are packed -> how many parameters; packed_bytes: of those. kept: GGML's type -> what its
    matrices become with `quantization='keep'`.
    """

    file: str
    format: str
    config: RWKVConfig
    parameters: int
    dtypes: dict
    stored_bytes: int
    packed: dict
    packed_bytes: int
    kept: dict

    @property
    def dtype(self):
        """The dtype most parameters have."""
        return max(self.dtypes, key=self.dtypes.get)

    @property
    def state_bytes(self):
        """Bytes of the state of one sequence, all of it in float32."""
        return 4 * sum(map(count, RWKVState.shapes(self.config)))

    def memory(self, itemsize):
        """Bytes of the weights and one state, with so many bytes for each number that is not packed."""
        return itemsize * (self.parameters - sum(self.packed.values())) + self.packed_bytes + self.state_bytes


def summarise(path, format=None):
    """The `Summary` of a weight file or folder. Arguments and errors as for `open_weights`."""
    with open_checkpoint(path, format=format) as checkpoint:
        config, tensors = checkpoint.config, checkpoint.tensors
        entries, metadata = tensors.entries(), tensors.metadata
    dtypes, blocks = {}, metadata.get("blocks", {})
    for name, tensor in entries.items():
        dtype = blocks.get(name, str(tensor.dtype))
        dtypes[dtype] = dtypes.get(dtype, 0) + count(tensor.shape)
    packed = [
        (title(one.packed.scheme), count(one.shape), _packed_bytes(one)) for one in entries.values() if one.packed
    ]
    if packed:  # then these are held so, whatever is computed in
        halves = [entries[name] for name in halves_of(config.rules(), tensors)]
        packed += [("bfloat16", count(one.shape), one.nbytes) for one in halves if one.packed is None]
    return Summary(
        file=str(checkpoint.path),
        format=checkpoint.format.title.replace("`", ""),
        config=config,
        parameters=sum(dtypes.values()),
        dtypes=dtypes,
        stored_bytes=metadata.get("stored_bytes") or tensors.nbytes,
        packed={name: sum(size for one, size, _ in packed if one == name) for name, _, _ in packed},
        packed_bytes=sum(size for _, _, size in packed),
        kept={one.difference.kind.lower(): becomes(one) for one in metadata.get(OFFERED, {}).values()},
    )


def _packed_bytes(tensor):
    return tensor.packed.scheme.nbytes(*tensor.shape)
