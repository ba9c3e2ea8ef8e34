"""What a weight file holds, from its names and shapes: no tensor is read and no layer is loaded."""

from dataclasses import dataclass

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.weights import bert4keras3, hdf5, keras_h5
from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.files import CONFIG, config_beside, config_of, open_weights, weights_path
from bert4keras_rwkv.weights.tensors import count


@dataclass(frozen=True)
class Summary:
    """Version and sizes, how many parameters, how many of each dtype, and the bytes they take as stored."""

    file: str
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
        """Bytes of the state of one sequence: float32 matrices, and shift vectors in float32 too."""
        c = self.config
        matrices = c.num_hidden_layers * c.num_attention_heads * c.attention_head_size**2
        return 4 * (matrices + 2 * c.num_hidden_layers * c.hidden_size)


def summarise(path):
    """The `Summary` of a weight file or preset folder. Raises as `open_weights` does."""
    file = weights_path(path)
    tensors, config = _entries(file)
    dtypes = {}
    for tensor in tensors:
        dtypes[str(tensor.dtype)] = dtypes.get(str(tensor.dtype), 0) + count(tensor.shape)
    return Summary(
        file=str(file),
        config=config,
        parameters=sum(dtypes.values()),
        dtypes=dtypes,
        stored_bytes=sum(tensor.nbytes for tensor in tensors),
    )


def _entries(file):
    """Every `Tensor` of a file, and the config."""
    if _is_ours(file):
        config = config_beside(file)
        if config is None:
            raise WeightsError(f"'{file}' says no sizes by itself. Put its '{CONFIG}' beside it.")
        with hdf5.open_hdf5(file) as opened:
            return list(hdf5.data_sets(opened).values()), config
    with open_weights(file) as tensors:
        return [tensors.entry(name) for name in tensors], config_of(file, tensors)


def _is_ours(file):
    """Whether it is a `.weights.h5` of our own, whose variables only a version's table could name."""
    with open(file, "rb") as opened:
        if opened.read(8) != hdf5.MAGIC:
            return False
    with hdf5.open_hdf5(file) as opened:
        return keras_h5.ROOT in opened and not bert4keras3.is_bert4keras3(opened)
