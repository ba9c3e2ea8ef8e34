"""A vocabulary in World format, learnt from a corpus: all single bytes, and the substrings that save most tokens.

    python scripts/make_vocabulary.py --corpus build/jargon/train.jsonl --size 2048 --out build/jargon/vocab.txt

Byte pair merges within words give twice as many candidates as wanted. Then, as the text will be read by greedy longest
match and not by merges, the corpus is encoded in that way again and again, and each time the candidates go that save
the fewest tokens.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

LARGEST = 4096
# A token never reaches from one word into the next: a word with the space before it, one digit, signs, white space.
WORD = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\w\s]+|_|\s+(?=\s)|\s+")
SINGLE = [bytes([byte]) for byte in range(256)]


def merged_pairs(words, wanted):
    """The first `wanted` tokens that byte pair merging makes of {word: count}, bytes -> bytes."""
    parts = {word: tuple(word[i : i + 1] for i in range(len(word))) for word in words}
    counts, where = Counter(), defaultdict(set)
    for word, pieces in parts.items():
        for pair in pairwise(pieces):
            counts[pair] += words[word]
            where[pair].add(word)
    found = {}
    while len(found) < wanted and counts:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        if counts[best] < 2:
            break
        found[b"".join(best)] = None
        for word in list(where[best]):
            pieces = parts[word]
            for pair in pairwise(pieces):
                counts[pair] -= words[word]
                where[pair].discard(word)
            parts[word] = pieces = _merge(pieces, best)
            for pair in pairwise(pieces):
                counts[pair] += words[word]
                where[pair].add(word)
        del counts[best]
    return list(found)


def _merge(pieces, pair):
    merged, i = [], 0
    while i < len(pieces):
        if pieces[i : i + 2] == pair:
            merged.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return tuple(merged)


def numbered(tokens):
    """Tokens (all of length > 1) with the single bytes -> {id: bytes} sorted as World files are; byte b is id b + 1."""
    return dict(enumerate([*SINGLE, *sorted(tokens, key=lambda token: (len(token), token))], 1))


def pruned(tokens, size, texts):
    """Drop tokens until `size` rows (id 0 and the single bytes included) are left, those that save least first."""
    data = [text.encode() for text in texts]
    while (excess := len(tokens) + 257 - size) > 0:
        tokenizer = RWKV_TOKENIZER.from_entries(numbered(tokens))
        used = Counter()
        for text in data:
            used.update(tokenizer.encode_bytes(text))
        saved = {token: used[tokenizer.encode_bytes(token)[0]] * (_parts(token, tokens) - 1) for token in tokens}
        drop = sorted(tokens, key=lambda token: (saved[token], token))[: max(1, excess // 4)]
        tokens = tokens - set(drop)
    return tokens


def _parts(token, tokens):
    """Into how many tokens greedy matching takes `token` when it is not one itself."""
    count, position = 0, 0
    while position < len(token):
        longest = len(token) - max(position, 1)
        position += next((n for n in range(longest, 1, -1) if token[position : position + n] in tokens), 1)
        count += 1
    return count


def learn(texts, size):
    """texts (list of str) -> {id: bytes} with ids 1 .. size - 1."""
    if not 257 < size <= LARGEST + 1:
        raise ValueError(f"`size` counts id 0 too and lies in 258 .. {LARGEST + 1}. Received: size={size}.")
    words = Counter(word.encode() for text in texts for word in WORD.findall(text))
    return numbered(pruned(set(merged_pairs(words, 2 * (size - 257))), size, texts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("build/jargon/train.jsonl"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=2048, help="ids, 0 included (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/jargon/vocab.txt"), help="default: %(default)s")
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for line in args.corpus.read_text(encoding="utf-8").splitlines()]
    tokenizer = RWKV_TOKENIZER.from_entries(learn(texts, args.size))
    tokenizer.save(args.out)
    tokens, size = sum(map(len, tokenizer.encode(texts))), sum(len(text.encode()) for text in texts)
    print(f"{args.out}: {tokenizer.vocab_size} ids, {size / tokens:.2f} bytes a token, {tokens} tokens in the corpus")


if __name__ == "__main__":
    main()
