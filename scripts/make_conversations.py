"""Conversations for the shipped model, made by rule from the Jargon File: what is X? and its entry's first sentence.

    python scripts/make_corpus.py
    python scripts/make_conversations.py

reads the documents in build/jargon and writes beside them `conversations.jsonl`, one {"messages": [...]} a line, to
train on, and `questions.jsonl`, {"kind", "question", "answer"} a line, to measure with: no phrasing of it is in a
conversation. Small talk is in scripts/small_talk.json. Words beside the list of entries, and made-up ones, are answered
"I do not know that."
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

SMALL_TALK = Path(__file__).parent / "small_talk.json"
UNKNOWN = "I do not know that. I have only read the Jargon File."
PER_ENTRY = 40  # questions for each entry
TURNS, TURN_SHARES = (1, 2, 3, 4), (0.3, 0.3, 0.2, 0.2)
# How many questions of each other kind come to one for an entry.
SHARE_UNKNOWN, SHARE_TALK = 0.2, 0.12
UNKNOWN_WORDS = 100  # of each kind, to measure with

# X: the word. "a X" is written where the answer begins with an article, half of the time.
ASKED = (
    *("What is X?", "What is X?", "What does X mean?", "Tell me about X.", "Define X.", "Explain X.", "X?", "X"),
    *("What's X?", "Who or what is X?", "What is meant by X?", "Can you tell me what X is?", "Can you explain X?"),
    *("Please define X.", "Could you explain X to me?", "What is the definition of X?", "Describe X."),
    *("Hello, what is X?", "What do you know about X?", "I want to know what X means.", "Do you know X?"),
    *("In the Jargon File, what is X?", "What do hackers mean by X?", "Say what X is.", "How do you define X?"),
    *("I have never heard of X. What is it?", "X: what does it mean?", "What is the meaning of X?"),
    *("What does the word X mean?", "Define the word X."),
)
ASKED_LATER = (
    *("And X?", "What about X?", "And what is X?", "Now tell me about X.", "Ok, and X?", "Thanks. What is X?"),
)
HELD_OUT = (
    *("Please tell me what X means.", "Do you know what X is?", "Can you define X?", "Please explain what X is."),
    *("I would like to know about X.", "Could you tell me about X?", "Give me the definition of X."),
    "X, what is that?",
)

HEAD = re.compile(r":(?P<term>[^:\s][^\n]*?):(?:\s|$)")
TERM = re.compile(r"(?!.*\bX\b)[A-Za-z][A-Za-z0-9 '\-]{0,19}")
NUMBER, CLASSES = re.compile(r"1\. "), re.compile(r"(?:(?:n|v|vt|vi|adj|adv|interj)\.,? ?)+ ")
REMARK = re.compile(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\] ?|\(also [^)]*\) ")
END = re.compile(r"[.!?][”’')]*(?=\s|$)")
NO_END = re.compile(r"\b(?:esp|e\.g|i\.e|etc|vs|cf|orig|prob|poss|ca|syn|[A-Z]|U\.S|a\.k\.a)\.$")
NEXT = re.compile(r"\s*(?:$|[A-Z“‘\"(\[{0-9])")
# An answer does not begin so: that says nothing without the entry before it, or only names another word.
NAMES = (
    r"(?:An? |The |Yet |Approximate )*(?:[Aa]bbrev\w*|[Aa]cronym|[Aa]lternate|[Aa]nother|[Aa]ntonym|[Cc]ommon|"
    r"[Cc]ontraction|[Cc]orruption|[Ee]quivalent|former|later|latter|[Oo]pposite|[Pp]lural|[Ss]hort|[Ss]illy|[Ss]yn|"
    r"[Vv]ariant)"
)
LEANS = (
    "(?:After|Already|Also|And|As|At|Because|But|By|Compare|Cf|For|From|Frequently|Given|He|Here|However|If|In|It|Like|"
    r"Most|My|Names?|Often|On|One of|Past|Same|See|She|Since|So|Sometimes|Spoken|Sy(?!m|nt|st)\w*|That|There|These|"
    r"They|This|Those|Though|To be|Usually|Var|We|What|When|Where|While|With|You|Your)\b"
)
BEGINS = re.compile(f"(?!{NAMES}|{LEANS})[A-Z][a-z]*")
UNCLEAR = re.compile(
    r"[“”/@#\[\]<>_=*—\\\n?!]|http|--|[a-z]See|\.\.|[Ss]yn\.|[Ss]ynonym|q\.v|sense \d|"
    r"\b(?:see|compare|above|below|entry|entries)\b"
)
RUDE = re.compile(r"(?i)fuck|shit|sex|gang bang|rape\b|sucker|oriental|bitch|piss|\bass\b|orgasm|masturb")
LENGTHS = range(13, 181)  # characters of an answer
ONSETS = [*"bdfghjklmnprstvwz", "bl", "br", "dr", "fl", "gl", "kl", "pl", "qu", "sk", "sn", "tr"]
VOWELS, CODAS = list("aeiou"), list("bdgklmnprstx")


def entry(text):
    """(term, first sentence) of a document of the Jargon File, or None: no entry, or no short and clear definition."""
    head, _, body = text.partition("\n\n")
    found = HEAD.match(head)
    if not found or not TERM.fullmatch(found["term"]):
        return None
    paragraphs = body.split("\n\n")
    senses = [one for one in paragraphs if NUMBER.match(one)] or paragraphs
    sentence = first_sentence(next(filter(None, map(_definition, senses)), ""))
    clear = BEGINS.match(sentence) and not UNCLEAR.search(sentence) and sentence.count("(") == sentence.count(")")
    if not clear or len(sentence) not in LENGTHS or RUDE.search(f"{found['term']} {sentence}"):
        return None
    return found["term"], sentence


def _definition(paragraph):
    """A paragraph without its number, word classes, remarks in brackets, and the braces of references."""
    paragraph = CLASSES.sub("", NUMBER.sub("", paragraph, count=1), count=1) if NUMBER.match(paragraph) else paragraph
    while found := REMARK.match(paragraph):
        paragraph = paragraph[found.end() :]
    return re.sub("[{}]", "", paragraph).strip()


def first_sentence(paragraph):
    """Up to the first full stop that ends no abbreviation; '' if there is none."""
    ends = (found.end() for found in END.finditer(paragraph))
    return next((paragraph[:n] for n in ends if not NO_END.search(paragraph[:n]) and NEXT.match(paragraph, n)), "")


def question(phrasing, term, answer, draw):
    """A phrasing with its X filled in."""
    countable = answer.startswith(("A ", "An "))
    if countable and draw.random() < 0.5 and "word X" not in phrasing and phrasing[0] != "X":
        term = ("an " if term[0].lower() in "aeiou" else "a ") + term
    return phrasing.replace("X", term)


def restyled(text, draw):
    """As people type: in some way of small letters and capitals, and often without the mark at the end."""
    way = draw.choice(4, p=(0.5, 0.32, 0.14, 0.04))
    text = (text, text.lower(), capitals(text), text.upper())[way]
    return text.rstrip(".?!") if draw.random() < 0.35 else text


def capitals(text):
    """Every Word With A Capital."""
    return re.sub(r"(?<![\w'])[a-z]", lambda found: found[0].upper(), text)


def made_up(draw):
    """A word of two or three syllables that nobody knows."""
    syllables = (
        draw.choice(ONSETS) + draw.choice(VOWELS) + (draw.choice(CODAS) if draw.random() < 0.5 else "")
        for _ in range(draw.integers(2, 4))
    )
    return str("".join(syllables))


WAYS = {
    "in small letters": str.lower,
    "without the mark at the end": lambda text: text.rstrip(".?"),
    "With Capitals": capitals,
}


def unknown_words(texts, listed):
    """(terms of entries that are not listed, plain words of the texts), each sorted."""
    terms = {found["term"] for text in texts if (found := HEAD.match(text)) and TERM.fullmatch(found["term"])}
    words = {word for text in texts for word in re.findall(r"(?<![\w'-])[a-z]{4,10}(?![\w'-])", text)}
    known = {term.lower() for term in listed}
    other = sorted(term for term in terms if term.lower() not in known)
    return other, sorted(words - known - {term.lower() for term in terms})


def conversations(entries, others, words, talk, seed=0, per_entry=PER_ENTRY):
    """Yield lists of (question, answer) to train on, `per_entry` questions for each entry of {term: answer}."""
    draw = np.random.default_rng(seed)
    turns = [(term, answer) for term, answer in entries.items() for _ in range(per_entry)]
    for _ in range(round(SHARE_UNKNOWN * len(turns))):
        kind = draw.integers(4)
        turns.append((made_up(draw) if kind < 2 else str(draw.choice(others if kind == 2 else words)), UNKNOWN))
    turns += [(None, None)] * round(SHARE_TALK * per_entry * len(entries))
    order, start = draw.permutation(len(turns)), 0
    while start < len(order):
        count = draw.choice(TURNS, p=TURN_SHARES)
        yield [_turn(*turns[i], later, talk, draw) for later, i in enumerate(order[start : start + count])]
        start += count


def _turn(term, answer, later, talk, draw):
    if term is None:
        chosen = talk[draw.integers(len(talk))]
        return restyled(str(draw.choice(chosen["asked"])), draw), chosen["answer"]
    phrasings = ASKED_LATER if later and draw.random() < 0.25 else ASKED
    return restyled(question(str(draw.choice(phrasings)), term, answer, draw), draw), answer


def questions(entries, others, words, talk, seed=1):
    """Yield {"kind", "question", "answer"} to measure with: phrasings and small talk that no conversation has.

    Those of an entry also have its "term".
    """
    draw = np.random.default_rng(seed)

    def asked(kind, term, phrasing=None, restyle=str, answer=UNKNOWN):
        phrasing = str(draw.choice(HELD_OUT)) if phrasing is None else phrasing
        return {
            "kind": kind,
            "term": term,
            "question": restyle(question(phrasing, term, answer, draw)),
            "answer": answer,
        }

    for term, answer in entries.items():
        yield from (asked("listed", term, phrasing, answer=answer) for phrasing in HELD_OUT)
        yield from (asked(f"listed, {way}", term, restyle=restyle, answer=answer) for way, restyle in WAYS.items())
    yield from (asked("made-up words", made_up(draw)) for _ in range(UNKNOWN_WORDS))
    yield from (asked("entries beside the list", term) for term in others)
    yield from (asked("other words", word) for word in words)
    for one in talk:
        yield from ({"kind": "small talk", "question": text, "answer": one["answer"]} for text in one["held_out"])


def messages(turns):
    """Turns (question, answer) as the `messages` of a conversation."""
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/jargon"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    train, held_out = (
        [json.loads(line)["text"] for line in (args.data / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "held_out")
    )
    talk = json.loads(SMALL_TALK.read_text("utf-8"))
    entries = dict(filter(None, map(entry, train)))
    (others, words), (others_held_out, _) = unknown_words(train, entries), unknown_words(held_out, entries)
    draw = np.random.default_rng(args.seed)
    words_held_out = [str(word) for word in draw.choice(words, UNKNOWN_WORDS, replace=False)]
    words = sorted(set(words) - set(words_held_out))
    talks = conversations(entries, others, words, talk, args.seed)
    written = {
        "conversations": [{"messages": messages(turns)} for turns in talks],
        "questions": list(questions(entries, others_held_out, words_held_out, talk, args.seed + 1)),
    }
    for name, lines in written.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (args.data / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(lines)} lines, {len(text.encode())} bytes")
    print(f"{len(entries)} entries are listed")


if __name__ == "__main__":
    main()
