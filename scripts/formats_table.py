"""The table of weight formats and versions, from the package's own registry.

`python scripts/formats_table.py` prints it; with `--write` it goes between the markers in the documents that show it.
"""

import re
import sys
from pathlib import Path

from bert4keras_rwkv.versions.rwkv5 import VARIANTS
from bert4keras_rwkv.weights.formats.registry import formats

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = {"README.md": "en", "README.zh-CN.md": "zh", "docs/formats.md": "en"}
BETWEEN = re.compile(r"(<!-- formats: begin.*?-->\n).*?(<!-- formats: end -->)", re.S)
VERSIONS = ("4", *VARIANTS, "6", "7")
WORDS = {
    "en": {"format": "format", "name": "`--to`, `--from`", "both": "both", "read": "read", "none": "–"},
    "zh": {"format": "格式", "name": "`--to`、`--from`", "both": "读写", "read": "读", "none": "–"},
}
CHINESE = {
    "bert4keras3": "bert4keras3 的 `.weights.h5`",
    "keras_hub": "Keras Hub 的 `.weights.h5`",
    "preset": "本项目的预设目录与 `.weights.h5`",
    "pth": "官方 `.pth`",
    "sharded": "带索引的分片 `.safetensors` 或 `.bin`",
    "safetensors": "由 `.pth` 转成的 `.safetensors`",
    "st": "web-rwkv 与 Ai00 的 `.st`",
    "hf": "Hugging Face 目录",
    "fla": "flash-linear-attention 目录",
    "gguf": "llama.cpp 的 GGUF",
    "rwkv_cpp": "rwkv.cpp 的 `.bin`",
}


def table(language):
    """The Markdown table: a row for each format, those that are written first; a column for each version."""
    words = WORDS[language]
    rows = [[words["format"], words["name"], *(f"RWKV-{version}" for version in VERSIONS)]]
    rows.append(["---"] * len(rows[0]))
    for known in sorted(formats(), key=lambda known: not known.written):
        title = known.title if language == "en" else CHINESE[known.name]
        rows.append([title, f"`{known.name}`", *(words[_ability(known, version)] for version in VERSIONS)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _ability(known, version):
    """What can be done with a version in a format: a key of `WORDS`."""
    if _has(known.written, version):
        return "both"
    return "read" if _has(known.versions, version) else "none"


def _has(versions, version):
    """'5' stands for all its variants."""
    return version in versions or version.partition(".")[0] in versions


def shown(document):
    """The table that a document shows between its markers, the markers left out."""
    found = BETWEEN.search((ROOT / document).read_text("utf-8"))
    return found[0].removeprefix(found[1]).removesuffix(found[2])


def write():
    """Put the table into every document."""
    for document, language in DOCUMENTS.items():
        path = ROOT / document
        text = path.read_text("utf-8")
        found = BETWEEN.search(text)
        path.write_text(text.replace(found[0], found[1] + table(language) + found[2]), encoding="utf-8")


if __name__ == "__main__":
    write() if "--write" in sys.argv[1:] else print(table("en"), end="")
