"""The text that the shipped model reads: the Jargon File, cut into documents, without tables of contents and tables.

    apt-get install jargon-text
    python scripts/make_corpus.py --out build/jargon

writes `train.jsonl` and `held_out.jsonl`, one document {"text": ...} a line. A document is an entry of the lexicon or a
section of the introduction and appendices; its paragraphs are unwrapped. One in twenty documents is held out.
The Jargon File (version 4.4.7) is in the public domain.
"""

import argparse
import gzip
import json
import re
from pathlib import Path

SOURCE = "/usr/share/doc/jargon-text/jargon.txt.gz"
HELD_OUT_EVERY = 20

BOX = re.compile("[\u2500-\u257f]")
INDENT = "   "
ENTRY = re.compile(r":[^:\s][^\n]*?:(\s|$)")
SENTENCE_END = tuple(".!?:;,])}”’'\"")


def documents(text):
    """The Jargon File as the Debian package has it -> list of str."""
    found, kept = [], []
    for paragraph in re.split(r"\n\s*\n", text.replace("\xa0", " ").replace("\r\n", "\n").strip("\n")):
        cleaned = clean(paragraph)
        if cleaned is None:
            continue
        heading = not paragraph.startswith(" ") and "\n" not in cleaned
        if heading or ENTRY.match(cleaned):
            found.append(kept)
            kept = []
        kept.append(cleaned)
    found.append(kept)
    # What is only a headline has nothing to say.
    return ["\n\n".join(kept) for kept in found if len(kept) > 1]


def clean(paragraph):
    """One paragraph of the file, unwrapped if it is prose; None for rules, tables and lines of a table of contents."""
    lines = [line.rstrip() for line in paragraph.splitlines()]
    if BOX.search(paragraph) or not any(lines):
        return None
    bodies = [line.removeprefix(INDENT) for line in lines]
    headline = len(lines) == 1 and lines[0].startswith(" ") and not bodies[0].endswith(SENTENCE_END)
    if headline and not ENTRY.match(bodies[0]):
        return None
    if any(line.startswith(" ") for line in bodies):
        return "\n".join(bodies)
    return " ".join(bodies)


def split(texts):
    """(for training, held out)"""
    held_out = texts[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    return [text for i, text in enumerate(texts) if i % HELD_OUT_EVERY != HELD_OUT_EVERY // 2], held_out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=SOURCE, help="jargon.txt, plain or gzipped (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/jargon"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    with (gzip.open if args.source.endswith(".gz") else open)(args.source, "rt", encoding="utf-8") as file:
        texts = documents(file.read())
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "held_out"), split(texts), strict=True):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(part)} documents, {sum(len(text.encode()) for text in part)} bytes")


if __name__ == "__main__":
    main()
