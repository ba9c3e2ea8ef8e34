"""What is asked, and the answers of a model to which nobody else speaks."""

import json
from dataclasses import dataclass

LENGTH = 40  # tokens of an answer
TURNS = 3
SUBJECTS = ("a hacker", "a kluge", "a daemon", "cruft", "a wizard", "a glitch", "foo", "a luser", "hack mode")
OPENINGS = ("What is {}?", "{} is", "Tell me about {}.", "When they saw {}, the hackers said that")
GREEDY = {"temperature": 0, "max_tokens": LENGTH}


@dataclass(frozen=True)
class Question:
    """A greedy request, and its answer when nobody else is there."""

    body: dict
    text: str

    @property
    def path(self):
        return "/v1/chat/completions" if "messages" in self.body else "/v1/completions"


def questions(alone, count):
    """So many texts and conversations, answered by `alone`, a worker or a `peer_alone.Alone`."""
    found = []
    for number in range(count):
        opening = text(number)
        if number % 2:
            found.append(answered(alone, {"prompt": opening * (1 + number % 7)}))
        else:
            found += conversation(alone, opening)
    return found


def text(number):
    """One of many texts."""
    return OPENINGS[number % len(OPENINGS)].format(SUBJECTS[number // len(OPENINGS) % len(SUBJECTS)])


def conversation(alone, opening):
    """The questions of a conversation: each goes on with what was answered before."""
    messages, found = [{"role": "user", "content": opening}], []
    for turn in range(TURNS):
        found.append(answered(alone, {"messages": list(messages)}))
        messages.append({"role": "assistant", "content": found[-1].text or "Yes."})
        messages.append({"role": "user", "content": f"And what else? {turn}"})
    return found


def answered(alone, body):
    """The `Question` of a body."""
    body = GREEDY | body
    return Question(body, alone.ask(json.dumps(body))["text"])
