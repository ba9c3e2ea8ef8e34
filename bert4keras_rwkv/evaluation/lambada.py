"""LAMBADA: the last word of a passage, which only the whole of it tells. Paperno et al., arXiv 1606.06031."""

from dataclasses import dataclass

from bert4keras_rwkv.data.sources import read_jsonl
from bert4keras_rwkv.evaluation.scoring import passage, score_passages
from bert4keras_rwkv.evaluation.text import begins_at_zero, end_ids, exponential
from bert4keras_rwkv.tokenizers.prompts import need_tokenizer
from bert4keras_rwkv.untrusted import parse_json, shown


@dataclass(frozen=True)
class LambadaScore:
    """examples: how many last words were asked for. hits: how many of them greedy decoding writes. nats: the sum of
    minus their log-probabilities.
    """

    examples: int
    hits: int
    nats: float

    @property
    def accuracy(self):
        """The share of words of which every token was the likeliest."""
        return self.hits / self.examples

    @property
    def perplexity(self):
        """e to the mean cross-entropy of a word (of all its tokens together)."""
        return exponential(self.nats / self.examples)


def read_lambada(path):
    """Yield (context, " " + last word) for each line of a JSONL file.

    A line is {"text": ...}, cut at its last space, as RWKV-LM and lm-eval cut it (white space behind the text is
    dropped first); with a "label" that the text does not end with, the text is the context and the label the word.

    Raises:
        ValueError: a line of another form, or a text without a space: which line.
    """
    for item in read_jsonl(path):
        yield _pair(parse_json(item.content, item.place, once=False), item.place)


def evaluate_lambada(rwkv, pairs, batch_size=8, chunk_len=256, state=None, after_end=None, progress=None):
    """Ask for the target after each context: a `LambadaScore`.

    pairs: any iterable of (context, target), both str. They are encoded apart and read after an end token, as RWKV-LM
    does it: 0, context, target. A target is a hit if each of its tokens is the likeliest. after_end, state, batch_size,
    chunk_len, progress: as for `evaluate_text`.
    """
    tokenizer = need_tokenizer(rwkv.tokenizer)
    if after_end is None:
        after_end = begins_at_zero(rwkv, state)
    passages = (
        target_passage(tokenizer, context, target, after_end, f"Example {number}")
        for number, (context, target) in enumerate(pairs)
    )
    examples = hits = 0
    nats = 0.0
    for found in score_passages(rwkv, passages, batch_size, chunk_len, state, progress):
        examples += 1
        hits += bool(found.likeliest.all())
        nats -= float(found.log_p.sum())
    if not examples:
        raise ValueError("There is no example to evaluate: the file is empty.")
    return LambadaScore(examples, hits, nats)


def target_passage(tokenizer, context, target, after_end=True, place="An example"):
    """A `Passage` that asks for a text after another.

    Both are encoded apart, white space behind the context with the target, as lm-eval does. Without a context the end
    token is read in any case.
    """
    kept = context.rstrip()
    before, asked = tokenizer.encode([kept, context[len(kept) :] + target])
    if not asked:
        raise ValueError(f"{place} asks for nothing: the text that is to come is empty.")
    return passage([(end_ids(tokenizer, after_end or not before), False), (before, False), (asked, True)], place)


def _pair(line, place):
    """Context and target of a parsed line."""
    text, label = (line.get("text"), line.get("label")) if isinstance(line, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(label, str | None):
        raise ValueError(f'{place}: a line is {{"text": "..."}}. Received: {shown(line)}.')
    text = text.rstrip()
    if label is not None and not text.endswith(f" {label.strip()}"):
        return text, f" {label.strip()}"
    context, space, word = text.rpartition(" ")
    if not space:
        raise ValueError(f"{place}: the last word is what follows the last space. Received: {shown(text)}.")
    return context, space + word
