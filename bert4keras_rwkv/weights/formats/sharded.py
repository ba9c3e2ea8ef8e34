"""Weights in several files with an index, `model.safetensors.index.json` or `pytorch_model.bin.index.json`: JSON with a
`weight_map`, name -> file beside it. https://huggingface.co/docs/transformers/big_models
"""

from pathlib import Path

from bert4keras_rwkv.weights.formats.pth import is_pth, open_pth
from bert4keras_rwkv.weights.formats.registry import Format, beginning
from bert4keras_rwkv.weights.formats.safetensors_file import is_safetensors, open_safetensors
from bert4keras_rwkv.weights.shards import every_problem, weight_map
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, official_name

SUFFIX = ".index.json"


def is_index(path, start):
    """Whether it is called like an index and begins like JSON."""
    return path.name.endswith(SUFFIX) and start.lstrip().startswith(b"{")


def open_sharded(path, config=None):
    """The tensors of all shards as one. Missing shards, missing, extra and double tensors: one `WeightsError`."""
    path = Path(path)
    wanted = {official_name(name): file for name, file in weight_map(path).items()}
    opened, entries, problems, metadata = {}, {}, [], {}
    try:
        for file in sorted(set(wanted.values())):
            try:
                opened[file] = _open(path.parent / file)
            except FileNotFoundError:
                problems.append(f"the shard '{file}' is missing")
                continue
            except OSError as error:
                problems.append(f"the shard '{file}' cannot be opened: {error.strerror}")
                continue
            except WeightsError as error:
                problems.append(str(error))
                continue
            for name, entry in opened[file].entries().items():
                if wanted.get(name) == file:
                    entries[name] = entry
                else:
                    said = f"in '{wanted[name]}'" if name in wanted else "nowhere"
                    problems.append(f"'{file}' holds '{name}', which is {said} by the index")
            metadata |= opened[file].metadata
        lost = [name for name, file in wanted.items() if file in opened and name not in entries]
        problems += [f"'{wanted[name]}' lacks '{name}'" for name in lost]
        every_problem(path, problems)
    except BaseException:
        _close(opened)
        raise
    return Tensors(entries, metadata, lambda: _close(opened))


def _open(file):
    """One shard."""
    start = beginning(file)
    if is_pth(file, start):
        return open_pth(file)
    if is_safetensors(file, start):
        return open_safetensors(file)
    raise WeightsError(f"the shard '{file.name}' is neither a `.safetensors` nor a `.bin` of PyTorch")


def _close(opened):
    for tensors in opened.values():
        tensors.close()


FORMAT = Format(
    "sharded",
    "`.safetensors` or `.bin` in shards with an index",
    ("4", "5", "6", "7"),
    is_index,
    open_sharded,
    dialects=("hf", "fla", "st"),
)
