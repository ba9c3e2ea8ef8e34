"""What folders for other projects have in common: `model.safetensors`, JSON files, and the vocabulary."""

import json

from bert4keras_rwkv.tokenizers import VOCABULARY_NAME
from bert4keras_rwkv.weights.formats.safetensors_file import write_safetensors
from bert4keras_rwkv.weights.preset import CONFIG, SAFETENSORS
from bert4keras_rwkv.weights.write import is_floating
from bert4keras_rwkv.whole import whole_folder

GENERATION = "generation_config.json"
WORLD_NAME = (
    "rwkv_vocab_v20230424.txt"  # what their tokenizers call the World vocabulary; `vocab.txt` is another format
)


def write_folder(folder, tensors, config, dtype=None, tokenizer=None, progress=None, texts=None):
    """Write `tensors`, under the project's names, and its config (a dict) to a folder. texts: more files, name -> text.

    The end of a document, id 0, ends what they generate.
    """
    said = {**config, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": str(dtype or _dtype(tensors))}
    files = {CONFIG: _json(said), GENERATION: _json({"bos_token_id": 0, "eos_token_id": 0}), **(texts or {})}
    with whole_folder(folder) as unfinished:
        write_safetensors(unfinished / SAFETENSORS, tensors, dtype, progress=progress)
        for name, text in files.items():
            (unfinished / name).write_text(text, encoding="utf-8")
        if tokenizer is not None and tokenizer.file_name is not None:
            name = WORLD_NAME if tokenizer.file_name == VOCABULARY_NAME else tokenizer.file_name
            tokenizer.save(unfinished / name)


def _dtype(tensors):
    """The floating dtype that most numbers have."""
    sizes = {}
    for entry in tensors.entries().values():
        if is_floating(entry.dtype):
            sizes[str(entry.dtype)] = sizes.get(str(entry.dtype), 0) + entry.nbytes
    return max(sizes, key=sizes.get, default="float32")


def _json(keys):
    return json.dumps(keys, indent=2, sort_keys=True) + "\n"
