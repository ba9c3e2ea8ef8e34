"""Ask the shipped model questions in phrasings that it never saw, and write its README with what came of it.

    python scripts/make_conversations.py
    KERAS_BACKEND=jax python scripts/measure_shipped_model.py [--sample 100] [--write]

reads `questions.jsonl` and `held_out.jsonl` in build/jargon. An answer, greedy, is right if its ROUGE-L (F1 of the
longest common subsequence of words) with the expected one is at least 0.6. With --sample so many questions of each kind
are asked, drawn with a fixed seed; without it all are. With --write the README of the preset is written.
"""

import argparse
import json
import os
import re
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.evaluation import evaluate_text
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.templates import conversation, template_of

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "build/jargon"
PRESET = ROOT / "bert4keras_rwkv/presets/finch-jargon"
ROWS, LONGEST = 64, 80  # prompts at a time; new tokens
# What the trainings say of themselves.
RECORDS = {"train": "training.json", "teach": "teaching.json", "recall": "recalling.json"}
ENOUGH = 0.6
FIRST = "listed"
TURNS, MOST = 4, 256  # of the conversations whose last answers are counted, too; how many

README = """# {name}

A small RWKV-6 that writes like the Jargon File and answers questions about it: {layers} layers of width {width},
{parameters:,} parameters in float16, {vocab_size} ids.

- `scripts/train_shipped_model.py` trained it from random weights on the Jargon File 4.4.7 (public domain; Debian
  package `jargon-text`): {train}. The loss: `docs/shipped-model-loss.png`.
- `scripts/teach_shipped_model.py` taught it to talk: {teach};
  and again, so that it still writes like the first one: {recall}.
  It read the documents and conversations that `scripts/make_conversations.py` made by rule, of {entries} entries with
  their first sentences and of small talk.

Ask it something:

    bert4keras-rwkv generate --temperature 0 --prompt $'User: What is a hacker?\\n\\nAssistant:'

Held-out text (one document in twenty, never trained on): **{bits:.3f} bits per byte**, measured with the float16
weights of this folder. It has read one book and knows no facts. It is here so that the package can be tried and tested
without a download.

## What it answers

Asked in phrasings that it never saw, greedy. Right means that the answer has a ROUGE-L of at least {enough} with the
one expected: the first sentence of the entry for words of the list, for others
"{unknown}"
`scripts/measure_shipped_model.py --write` measured {scope}, and wrote this file.

| what is asked | questions | right |
|---|---|---|
{table}

What is wrong is mostly the definition of another word. The list:

{words}.
"""
STEPS = "{steps} steps of {batch} x {length} tokens"


def words_of(text):
    return re.findall(r"\w+", text.lower())


def rouge_l(expected, answer):
    """F1 of the longest common subsequence of words, 0 .. 1."""
    ours, theirs = words_of(expected), words_of(answer)
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = row
        row = [0]
        for i, other in enumerate(theirs):
            row.append(before[i] + 1 if word == other else max(row[i], before[i + 1]))
    return 2 * row[-1] / max(len(ours) + len(theirs), 1)


def right(expected, answer):
    return rouge_l(expected, answer) >= ENOUGH


def prompt(turns):
    """The prompt of the next answer. turns: texts of user and assistant in turn, the last one a question."""
    roles = ("user", "assistant")
    parts = conversation([{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)])
    return "".join(part.text for part in parts) + "Assistant:"


def replies(rwkv, talks, rows=ROWS):
    """The answer to the last question of each list of turns, greedy. Always `rows` at a time: one program."""
    answers = []
    for start in range(0, len(talks), rows):
        some = [prompt(turns) for turns in talks[start : start + rows]]
        full = (some * rows)[:rows]
        found = rwkv.generate(full, max_new_tokens=LONGEST, stop_texts="\n\n", strip_prompt=True, sampling="greedy")
        answers += [text.strip() for text in found[: len(some)]]
    return answers


def sampled(asked, size, seed=0):
    """`size` of each kind, drawn; all for None."""
    kinds = {
        kind: [one for one in asked if one["kind"] == kind] for kind in dict.fromkeys(one["kind"] for one in asked)
    }
    draw = np.random.default_rng(seed)
    if size is None:
        return kinds
    return {kind: [found[i] for i in draw.permutation(len(found))[:size]] for kind, found in kinds.items()}


def measured(rwkv, kinds, seed=0):
    """Yield (kind, questions, how many are right, [(question, answer)] of wrong ones)."""
    for kind, asked in kinds.items():
        answers = replies(rwkv, [[one["question"]] for one in asked])
        yield _counted(kind, asked, answers)
    opening = [turn["content"] for turn in template_of("world").dialogue]
    some = kinds[FIRST][:MOST]
    yield _counted(f"{FIRST}, in a chat", some, replies(rwkv, [[*opening, one["question"]] for one in some]))
    draw, pool = np.random.default_rng(seed), kinds[FIRST]
    rows = [[pool[i] for i in draw.permutation(len(pool))[:TURNS]] for _ in range(min(len(pool), MOST))]
    talks = [[] for _ in rows]
    for turn in range(TURNS):
        for talk, row in zip(talks, rows, strict=True):
            talk.append(row[turn]["question"])
        answers = replies(rwkv, talks)
        if turn:
            yield _counted(f"{FIRST}, question {turn + 1} of a conversation", [row[turn] for row in rows], answers)
        for talk, answer in zip(talks, answers, strict=True):
            talk.append(answer or "...")


def _counted(kind, asked, answers):
    wrong = [
        (one["question"], answer)
        for one, answer in zip(asked, answers, strict=True)
        if not right(one["answer"], answer)
    ]
    return kind, len(asked), len(asked) - len(wrong), wrong


def readme(rwkv, rows, bits, asked, scope):
    """The text of the preset's README."""
    listed = {one["term"] for one in asked if one["kind"] == FIRST}
    trainings = {name: STEPS.format(**json.loads((DATA / file).read_text("utf-8"))) for name, file in RECORDS.items()}
    return README.format(
        name=PRESET.name,
        layers=rwkv.config.num_hidden_layers,
        width=rwkv.config.hidden_size,
        parameters=rwkv.model.count_params(),
        vocab_size=rwkv.config.vocab_size,
        entries=len(listed),
        bits=bits,
        enough=ENOUGH,
        unknown=next(one["answer"] for one in asked if one["kind"] == "made-up words"),
        scope=scope,
        table="\n".join(f"| {kind} | {count} | {100 * good / count:.1f} % |" for kind, count, good, _ in rows),
        words=", ".join(sorted(listed, key=str.lower)),
        **trainings,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=PRESET, help="preset folder (default: %(default)s)")
    parser.add_argument("--sample", type=int, help="questions of each kind (default: all)")
    parser.add_argument(
        "--wrong", type=int, default=3, help="wrong answers to show of each kind (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="write the README of the model")
    args = parser.parse_args()
    asked, texts = (
        [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("questions", "held_out")
    )
    rwkv = RWKV.from_preset(args.model)
    rows = []
    for row in measured(rwkv, sampled(asked, args.sample)):
        kind, count, good, wrong = row
        print(f"{kind}: {good} of {count}, {100 * good / count:.1f} %", flush=True)
        for question, answer in wrong[: args.wrong]:
            print(f"    {question} -> {answer}")
        rows.append(row)
    bits = evaluate_text(rwkv, texts).bits_per_byte
    print(f"{bits:.3f} bits per byte held out")
    if args.write:
        scope = "all of them" if args.sample is None else f"{args.sample} of each kind, drawn with a fixed seed"
        with atomic_file(args.model / "README.md") as unfinished:
            Path(unfinished).write_text(readme(rwkv, rows, bits, asked, scope), encoding="utf-8")


if __name__ == "__main__":
    main()
