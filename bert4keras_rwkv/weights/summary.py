"""What a weight file holds, from its names and shapes: no tensor is read and no layer is loaded."""

from dataclasses import dataclass

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights.checkpoint import config_of, opened
from bert4keras_rwkv.weights.folder import CONFIG, config_beside, weights_path
from bert4keras_rwkv.weights.formats.keras_h5 import stored
from bert4keras_rwkv.weights.formats.registry import format_named, format_of
from bert4keras_rwkv.weights.tensors import WeightsError, count


@dataclass(frozen=True)
class Summary:
    """The format's title, version and sizes, how many parameters, how many of each dtype, and the bytes as stored."""

    file: str
    format: str
    config: RWKVConfig
    parameters: int
    dtypes: dict
    stored_bytes: int

    @property
    def dtype(self):
        """The dtype most parameters have."""
        return max(self.dtypes, key=self.dtypes.get)

    @property
    def state_bytes(self):
        """Bytes of the state of one sequence, all of it in float32."""
        return 4 * sum(map(count, RWKVState.shapes(self.config)))


def summarise(path, format=None):
    """The `Summary` of a weight file or folder. Arguments and errors as for `open_weights`."""
    file = weights_path(path)
    known, tensors, config, metadata = _entries(file, format)
    dtypes, blocks = {}, metadata.get("blocks", {})
    for name, tensor in tensors.items():
        dtype = blocks.get(name, str(tensor.dtype))
        dtypes[dtype] = dtypes.get(dtype, 0) + count(tensor.shape)
    return Summary(
        file=str(file),
        format=known.title.replace("`", ""),
        config=config,
        parameters=sum(dtypes.values()),
        dtypes=dtypes,
        stored_bytes=metadata.get("stored_bytes") or sum(tensor.nbytes for tensor in tensors.values()),
    )


def _entries(file, format):
    """The `Format` of a file, name -> `Tensor`, the config, and what else the file says."""
    known = format_of(file) if format is None else format_named(format, write=False)
    if known is not None and known.name == "preset":  # only a version's table could name its variables
        config = config_beside(file)
        if config is None:
            raise WeightsError(f"'{file}' says no sizes by itself. Put its '{CONFIG}' beside it.")
        found, close = stored(file)
        close()
        return known, found, config, {}
    known, tensors = opened(file, format=format)
    with tensors:
        return known, tensors.entries(), config_of(file, tensors), tensors.metadata
