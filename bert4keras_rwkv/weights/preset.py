"""What lies in a folder of weights, and under which names."""

from pathlib import Path

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.weights.errors import WeightsError

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"


def weights_path(path):
    """The weight file that `path` means: itself, or the one file of weights in a folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    found = sorted(file for pattern in ("*.weights.h5", "*.safetensors", "*.pth") for file in path.glob(pattern))
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"'{file.name}'" for file in found) or "none"
    raise WeightsError(f"A folder should hold '{WEIGHTS}' or one weight file. In '{path}' there are: {names}.")


def config_beside(path):
    """The `RWKVConfig` in the `config.json` of a folder, or beside a file; None if there is none."""
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / CONFIG
    return RWKVConfig.from_json(file) if file.is_file() else None
