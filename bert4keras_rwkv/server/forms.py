"""What the answers of OpenAI's protocol look like, whole and in chunks."""

import itertools
import time
import uuid


class Reply:
    """What becomes of the text of one answer of a chat: deltas of a stream, and in the end a message.

    opening: what the text begins with, that the model was given. A reply begins without space, unless it has begun
    before, and ends without space, unless it was cut.
    """

    def __init__(self, opening="", begun=False):
        self._opening, self._begun, self._space = opening, begun, ""

    def feed(self, text):
        """The deltas that more text gives, a list of dicts."""
        if not self._begun:
            text = self._opening + text if self._opening else text.lstrip()
            self._begun = bool(text)
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        return [{"content": shown}] if shown else []

    def end(self, reason):
        """The deltas that are left when the text has ended. reason: of a `Done`."""
        return [{"content": self._space}] if self._space and reason == "length" else []

    def reason(self, reason):
        """Why it has ended, as the protocol calls it."""
        return reason


class ChatForm:
    """The answers of /v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer, reply=Reply):
        self._tokenizer, self.reply = tokenizer, reply

    @staticmethod
    def length_before(index):
        """Characters before the text that is written."""
        return 0

    @staticmethod
    def begun():
        """What a choice of a stream begins with, None for nothing."""
        return {"delta": {"role": "assistant", "content": ""}}

    @staticmethod
    def piece(delta):
        """What a choice of a stream has next; {} at its end."""
        return {"delta": delta}

    @staticmethod
    def choice(deltas):
        """What a choice of a whole answer has."""
        said = [delta["content"] for delta in deltas if delta.get("content")]
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        message = {"role": "assistant", "content": "".join(said) if said or not calls else None, "refusal": None}
        return {"message": message | ({"tool_calls": _joined(calls)} if calls else {})}

    def logprobs(self, tokens, offset):
        """Of `Token`s, as the protocol has them."""
        return {"content": [self._told(one.id, one.logprob, one.top) for one in tokens], "refusal": None}

    def _told(self, token, logprob, top=None):
        data = self._tokenizer.decode_bytes(token)
        told = {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}
        return told if top is None else told | {"top_logprobs": [self._told(*one) for one in top]}


class CompletionForm:
    """The answers of /v1/completions."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def __init__(self, tokenizer, echo=("",)):
        self._tokenizer, self._echo = tokenizer, echo

    def reply(self, index):
        """Of the answer `index`."""
        return _Text(self._before(index))

    def length_before(self, index):
        """Characters before the text that is written."""
        return len(self._before(index))

    def _before(self, index):
        return self._echo[index % len(self._echo)]

    @staticmethod
    def begun():
        return None

    @staticmethod
    def piece(delta):
        return {"text": delta.get("content", "")}

    @staticmethod
    def choice(deltas):
        return {"text": "".join(delta["content"] for delta in deltas)}

    def logprobs(self, tokens, offset):
        """offset: characters that were before."""
        texts = [self._text(one.id) for one in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [{self._text(id): logprob for id, logprob in one.top} for one in tokens],
            "text_offset": list(itertools.accumulate(map(len, texts[:-1]), initial=offset))[: len(texts)],
        }

    def _text(self, token):
        data = self._tokenizer.decode_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:  # a part of a character, of which there are many: they are told apart
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class _Text(Reply):
    """The text of a completion, as it is."""

    def feed(self, text):
        if not self._begun:
            text, self._begun = self._opening + text, True
        return [{"content": text}] if text else []

    def end(self, reason):
        return []


class Answer:
    """One response: whole, or in chunks that belong together. form: a `ChatForm` or `CompletionForm`."""

    def __init__(self, form, model, usage_wanted=False):
        self.form, self._usage_wanted = form, usage_wanted
        self._head = {"id": form.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}

    def chunk(self, index, values, reason=None, logprobs=None, more=None):
        """A chunk of a stream, about one choice. more: what the chunk has besides."""
        choice = {"index": index, **values, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._usage_wanted else {}
        return {**self._head, "object": self.form.chunk, "choices": [choice], **usage, **(more or {})}

    def last(self, usage):
        """The chunk that tells how many tokens there were."""
        return {**self._head, "object": self.form.chunk, "choices": [], "usage": usage}

    def all(self, choices, usage, more):
        """The whole response."""
        return {**self._head, "object": self.form.whole, "choices": choices, "usage": usage, **more}


def usage(read, written, cached):
    """How many tokens were read, of which some were known, and written."""
    total = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return total | {"prompt_tokens_details": {"cached_tokens": cached}}


def _joined(calls):
    """The calls of functions that came in parts, each whole."""
    whole = {}
    for call in calls:
        empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        known = whole.setdefault(call["index"], empty)
        known["id"] = call.get("id") or known["id"]
        for name, text in call.get("function", {}).items():
            known["function"][name] += text or ""
    return [whole[index] for index in sorted(whole)]
