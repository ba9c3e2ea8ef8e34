"""A conversation with a model: messages in, replies out, and ways back."""

import copy
import dataclasses
import functools
import threading

from tqdm import tqdm

from bert4keras_rwkv.chat.saved import read_chat, write_chat
from bert4keras_rwkv.chat.turns import Record, kept_within
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models.request import whole_number
from bert4keras_rwkv.session import Session, alone
from bert4keras_rwkv.templates import end_of_reply, ids_of, template_for, template_of
from bert4keras_rwkv.tokenizers.prompts import need_tokenizer
from bert4keras_rwkv.untrusted import shown

NEW_TOKENS = 512
MEMORY = 1 << 28
CHUNK = 1024
# As in ChatRWKV's demo. A state is tuned for a form and a manner, and with gentler ones a model stays closer to them.
SAMPLING = Sampling(top_p=0.3, presence_penalty=0.5, frequency_penalty=0.5, penalty_decay=0.996)
SAMPLING_WITH_STATE = Sampling(top_p=0.2, presence_penalty=0.3, frequency_penalty=0.3, penalty_decay=0.996)


def _one_at_a_time(method):
    """Let one thread at a time into a method of a `Chat`; a second one is a RuntimeError."""

    @functools.wraps(method)
    def alone(self, *args, **kwargs):
        with self._alone():
            return method(self, *args, **kwargs)

    return alone


class Chat:
    """A conversation.

        chat = Chat(RWKV)
        print(chat.reply("What is a hacker?"))

    template: the form of the conversation: one of `templates.template_names()`, the path of a JSON file, a `Template`,
    or 'auto', what the model's file says, else what fits its name and vocabulary. system: what the system says first,
    where the template has a form for that. state: an RWKVState of one row to begin in, such as a tuned one. dialogue:
    without a state, read the template's own few turns first. sampling: a `Sampling` or a name, None: as in ChatRWKV's
    demo, gentler with a state. seed: an int makes replies repeatable. mode: one of the template's ways of answering
    (`template.modes`), for all messages from now on. max_new_tokens: of a reply, at most.

    Nothing is read before the first message, or `prepare`. A text of more than chunk_len tokens is read in pieces, and
    progress(done, total) called after each; None: a bar on stderr, if that is a terminal. The states before and after
    each reply are kept, in up to `memory` bytes, those of the newest and of the earliest turns first: going back to
    another turn reads the history again.
    """

    def __init__(
        self,
        rwkv,
        template="auto",
        system=None,
        state=None,
        sampling=None,
        seed=None,
        mode=None,
        max_new_tokens=NEW_TOKENS,
        *,
        dialogue=True,
        memory=MEMORY,
        chunk_len=CHUNK,
        progress=None,
    ):
        need_tokenizer(rwkv.tokenizer)
        self.rwkv, self.memory, self.progress = rwkv, memory, progress
        self.template = template_of(_template(rwkv) if template == "auto" else template)
        self.mode = mode
        self.max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 1)
        self.chunk_len = whole_number("chunk_len", chunk_len, 1)
        begun = state is not None or rwkv.backbone.start_states
        default = SAMPLING_WITH_STATE if begun else SAMPLING
        self._session = Session(rwkv, state, Sampling.of(sampling, default), seed)
        if begun:
            parts = [] if system is None else self.template.turn("system", system)
        else:
            parts = self.template.opening(system, dialogue)
        self.system, self._records, self._live = system, [], None
        self._lock = threading.RLock()
        self._first = ids_of(self.rwkv.tokenizer, parts)
        self._start = self._session.place = self._session.place.then(self._first)

    @property
    def mode(self):
        """The name of the template's way of answering, None for the usual one."""
        return self._mode

    @mode.setter
    def mode(self, name):
        self.template.mode(name)
        self._mode = name

    @property
    def sampling(self):
        """How replies are drawn, a `Sampling`; it may be set, to a name too."""
        return self._session.sampling

    @sampling.setter
    def sampling(self, sampling):
        self._session.sampling = Sampling.of(sampling, self._session.sampling)

    @property
    def history(self):
        """What was said so far, a list of `Turn`s; the example dialogue is not among them."""
        return [record.turn(self.template) for record in self._records]

    @property
    @_one_at_a_time
    def ids(self):
        """All ids that were read and written, those of the opening too, a list of int."""
        self._look()
        return [*self._first, *(one for record in self._records for one in (*record.asked, *record.written))]

    @property
    @_one_at_a_time
    def state(self):
        """The RWKVState after all that was shown; None at the very beginning."""
        before, last, _ = self._here()
        return before if last is None else self.rwkv.prefill(last, before)[1]

    @_one_at_a_time
    def prepare(self):
        """Read now what comes before the first message, which else waits for it. Returns self."""
        self._start = self._read(self._start)
        if not self._records:
            self._session.place = self._start
        return self

    def reply(self, text, role="user"):
        """Say something. Returns the reply, a str.

        role: 'user', or 'tool' for what a function gave. A message without text is a ValueError, and then nothing has
        changed.
        """
        with self._alone():
            return "".join(self.stream(text, role))

    @_one_at_a_time
    def stream(self, text, role="user"):
        """`reply` piece by piece: a `ChatStream`. Left early, the chat has read what was shown and nothing else."""
        if not isinstance(text, str):
            raise TypeError(f"A message is a str. Received: {shown(text)}.")
        message = self.template.clean(text)
        if not message:
            raise ValueError("The message is empty: there is nothing to answer. Say something, or call `retry()`.")
        self._settle()
        parts = [*self.template.turn(role, message, self.mode), *self.template.turn("assistant", mode=self.mode)]
        asked = self._end_of_reply() + ids_of(self.rwkv.tokenizer, parts)
        place, opening = self._session.place, self.template.mode(self.mode).opening
        record = Record(message, role, self.mode, opening, asked, place.seed, place.seed)
        record.before_reply = self._session.place = place.then(asked)
        self._records.append(record)
        kept_within(self._records[:-1], self.rwkv.config, self.memory)
        return self._begin()

    def retry(self):
        """Another answer to the last message, from the same state; with sampling, with other draws. Returns it."""
        with self._alone():
            return "".join(self.stream_retry())

    @_one_at_a_time
    def stream_retry(self):
        """`retry` piece by piece."""
        self._settle()
        if not self._records:
            raise ValueError("There is no message yet that could be answered again.")
        record = self._records[-1] = self._records[-1].again()
        self._session.place = self._before_reply(len(self._records) - 1)._replace(seed=record.seed)
        return self._begin()

    @_one_at_a_time
    def undo(self, n=1):
        """Take back the last n messages and their replies. Returns them, a list of `Turn`s.

        The same message said again has the same answer, drawn in the same way.
        """
        count = len(self._records)
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= count:
            raise ValueError(f"`n` is how many turns to take back, 1 to the {count} that there are. Received: {n!r}.")
        self._settle()
        gone = self._records[-n:]
        place = self._read(self._after(count - n - 1))
        del self._records[-n:]
        if self._records:
            self._records[-1].after_reply = place
        self._session.place = place._replace(seed=gone[0].seed)
        return [record.turn(self.template) for record in gone]

    @_one_at_a_time
    def fork(self):
        """Another chat that goes on from here; the two do not affect each other."""
        place, other = self._here(), copy.copy(self)
        other._session, other._lock = self._session.fork(), threading.RLock()
        other._session.place = place
        other._records, other._live = [dataclasses.replace(record) for record in self._records], None
        return other

    @_one_at_a_time
    def reset(self):
        """Go back to before the first message."""
        self._settle()
        self._records, self._session.place = [], self._start

    @_one_at_a_time
    def save(self, path):
        """Write the conversation to one file, whole or not at all: turns, states as far as `memory` goes, template,
        sampling and how the draws go on. `load` goes on as if nothing had happened.
        """
        seed = self._here().seed
        records = [dataclasses.replace(record) for record in self._records]
        kept_within(records, self.rwkv.config, self.memory)
        settings = {
            "template": self.template.to_dict(),
            "system": self.system,
            "mode": self.mode,
            "sampling": dataclasses.asdict(self.sampling),
            "max_new_tokens": self.max_new_tokens,
        }
        write_chat(path, self.rwkv, settings, self._first, self._start, seed, records)

    @classmethod
    def load(cls, path, rwkv, **options):
        """The `Chat` in a file of `save`, for the same model.

        options: `memory`, `chunk_len`, `progress`, as for `Chat`. Raises ValueError for a chat with another model, by
        name and sizes, and for a file that is none, or not whole.
        """
        saved = read_chat(path, rwkv)
        chat = cls(
            rwkv,
            saved.template,
            None,
            saved.start.before,
            saved.sampling,
            mode=saved.mode,
            max_new_tokens=saved.max_new_tokens,
            dialogue=False,
            **options,
        )
        chat.system, chat._first, chat._start, chat._records = saved.system, saved.first, saved.start, saved.records
        chat._session.place = chat._after(len(saved.records) - 1)._replace(seed=saved.seed)
        return chat

    def _repr_markdown_(self):
        """The conversation, for a notebook."""
        return "\n\n".join(turn.markdown(self.template) for turn in self.history) or "*…*"

    def __repr__(self):
        return f"<Chat of {len(self._records)} turns, template '{self.template.name}', with {self.rwkv!r}>"

    def _alone(self):
        return alone(self._lock, "chat")

    def _end_of_reply(self):
        """The ids of what the last reply still lacks: text in whose last token a stop began, and what ends a reply."""
        if not self._records:
            return []
        record = self._records[-1]
        return end_of_reply(self.rwkv.tokenizer, self.template, record.written, record.raw)

    def _begin(self):
        self._live = ChatStream(self, self._records[-1])
        return self._live

    def _pieces(self, record):
        """What the session writes in reply to a record, after reading what is long."""
        self.prepare()
        place = self._before_reply(len(self._records) - 1)
        with self._bar(place) as bar:
            place = self._in_pieces(place, bar, leave=self.chunk_len)
            self._session.place = record.before_reply = place._replace(seed=record.seed)
            stream = self._session.stream(self.max_new_tokens, self.template.stop_texts)
            if stream.pieces.state is not None:  # it has read what was left now
                bar.finish()
        return stream

    def _before_reply(self, number):
        """The `Place` in which the reply of a turn begins; ids may wait there."""
        record = self._records[number]
        return record.before_reply or self._after(number - 1).then(record.asked)

    def _after(self, number):
        """The `Place` after a turn, -1 for the beginning."""
        if number < 0:
            return self._start
        record = self._records[number]
        if record.after_reply is None:
            return self._before_reply(number).then(record.written)._replace(seed=record.end_seed)
        return record.after_reply

    def _look(self):
        """Take down how far the reply that is being written has come."""
        if self._live is not None:
            self._live.take_down()

    def _here(self):
        """The `Place` after all that was shown."""
        self._look()
        if self._live is not None and self._live.begun:
            return self._records[-1].after_reply
        return self._session.place

    def _settle(self):
        """Leave the reply that is being written."""
        place, self._live = self._here(), None
        self._session.place = place

    def _read(self, place):
        """`place` with one id waiting, or none; the others are read in pieces."""
        with self._bar(place) as bar:
            return self._in_pieces(place, bar, leave=1)

    def _bar(self, place):
        """How far the reading of what waits at a place is, up to its last id."""
        total = 0 if place.last is None else place.last.shape[1] - 1
        return _Bar(self.progress, total, quiet=total <= self.chunk_len)

    def _in_pieces(self, place, bar, leave):
        """`place` with at most `leave` ids waiting. Pieces are read as prompts are, so that no other programs are
        compiled.
        """
        while place.last is not None and place.last.shape[1] > leave:
            ids = place.last[0, : self.chunk_len + 1]
            before = self.rwkv.stream(ids, max_new_tokens=self.max_new_tokens, state=place.before).state
            place = place._replace(before=before, last=place.last[:, len(ids) - 1 :])
            bar.update(len(ids) - 1)
        return place


class ChatStream:
    """An iterator over a reply. It may be left at any moment; `close` does so by name.

    In a notebook, as what stands last in a cell, it shows the reply as it comes.
    """

    def __init__(self, chat, record):
        self._chat, self._record, self._pieces, self._closed = chat, record, None, False

    def __iter__(self):
        return self

    def __next__(self):
        with self._chat._alone():
            return self._next()

    def _next(self):
        chat, record = self._chat, self._record
        if self._closed:
            raise StopIteration
        if chat._live is not self:
            raise RuntimeError("The chat went on since: this reply is what it had given.")
        if not self.begun:
            self._pieces = chat._pieces(record)
            stream = self._pieces.pieces
            record.before_reply = record.before_reply._replace(
                before=stream.state, last=record.before_reply.last[:, -1:]
            )
            if record.opening:
                return record.opening
        before = len(record.reply)
        while len(record.reply) == before:
            try:
                record.raw += next(self._pieces)
            except StopIteration:
                self.take_down()
                self._closed = True
                raise
        return record.reply[before:]

    def close(self):
        """Write nothing more."""
        self._closed = True

    @property
    def drawn(self):
        """How many tokens were drawn, those included that wait to be shown."""
        return self._pieces.pieces.drawn if self.begun else 0

    @property
    def begun(self):
        """Whether anything was wanted yet."""
        return self._pieces is not None

    def take_down(self):
        """Put into the record what was shown so far, and where the text stands."""
        if not self.begun:
            return
        record, stream, place = self._record, self._pieces.pieces, self._chat._session.place
        tokenizer = self._chat.rwkv.tokenizer
        record.written, record.drawn, record.end_seed = list(stream.ids), stream.drawn, stream.seed
        if record.written and record.written[-1] == tokenizer.end_token:
            del record.written[-1]
            place = place._replace(last=None)  # the state has read all that is shown
        record.after_reply = place
        said = tokenizer.decode(record.written)
        if len(said) > len(record.raw):  # interrupted when the session had moved on, and the text was not yet here
            record.raw = said

    def _ipython_display_(self):
        from IPython.display import Markdown, display

        def now():
            return Markdown(self._record.turn(self._chat.template).markdown(self._chat.template))

        handle = display(now(), display_id=True)
        for _ in self:
            handle.update(now())


class _Bar:
    """How far a reading is: told to a function, or shown as a bar on stderr where that is a terminal."""

    def __init__(self, progress, total, quiet):
        self._progress = None if quiet else progress
        off = True if quiet or progress is not None else None
        self._done, self._total = 0, total
        self._bar = tqdm(total=total, desc="Reading", unit="token", disable=off, leave=False)

    def update(self, count):
        self._done += count
        self._bar.update(count)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def finish(self):
        """What was left has been read, too."""
        if self._done < self._total:
            self.update(self._total - self._done)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()


def _template(rwkv):
    """The name of the template that fits a model."""
    return template_for(rwkv.origin.name, rwkv.origin.template, rwkv.config.vocab_size)
