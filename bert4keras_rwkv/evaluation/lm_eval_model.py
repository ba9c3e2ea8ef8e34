"""A model for lm-eval (EleutherAI's lm-evaluation-harness), registered as "bert4keras_rwkv" when this is imported.

    import bert4keras_rwkv.evaluation.lm_eval_model
    lm_eval.simple_evaluate("bert4keras_rwkv", model_args={"pretrained": "model.pth"}, tasks=["lambada_openai"])

or `python -m bert4keras_rwkv.evaluation.lm_eval_model ...` with the arguments of lm-eval's own command.
"""

from bert4keras_rwkv.evaluation.lambada import target_passage
from bert4keras_rwkv.evaluation.scoring import passage, score_passages
from bert4keras_rwkv.evaluation.text import end_ids
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.tokenizers.prompts import need_tokenizer

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as missing:
    raise ImportError("lm-eval is not installed: pip install 'bert4keras_rwkv[eval]'.") from missing
from tqdm import tqdm

NEW_TOKENS = 256  # of an answer, where a task does not say it
BATCH = 8


@register_model("bert4keras_rwkv")
class RWKVForLMEval(LM):
    """An RWKV as lm-eval asks for it.

    pretrained: an `RWKV`, or a weight file, preset folder or shipped model; dtype, kernel, strategy: as for
    `build_transformer_model`. tokenizer: a `Tokenizer`, or None for that of the model. adapter, state: files to begin
    with, see `RWKV.load_adapter` and `RWKV.load_state`. batch_size, chunk_len: texts, and tokens of each, that are read
    at once. seed: of drawn answers.

    As in the evaluations of RWKV's authors every text is read after an end token, also where there is a context, and
    context and continuation are encoded apart. Texts are read whole: there is no longest one.
    """

    def __init__(
        self,
        pretrained="finch-jargon",
        tokenizer=None,
        dtype=None,
        kernel="auto",
        adapter=None,
        state=None,
        batch_size=BATCH,
        chunk_len=256,
        seed=0,
        max_batch_size=None,
        device=None,
        strategy=None,
    ):
        super().__init__()
        self.rwkv = self._model(pretrained, tokenizer=tokenizer, dtype=dtype, kernel=kernel, strategy=strategy)
        if adapter is not None:
            self.rwkv.load_adapter(adapter)
        self._state = None if state is None else self.rwkv.load_state(state)
        self.tokenizer = need_tokenizer(self.rwkv.tokenizer)
        self._reading = {"batch_size": _number(batch_size, BATCH), "chunk_len": int(chunk_len), "state": self._state}
        self._seed = int(seed)

    @staticmethod
    def _model(pretrained, **options):
        """The `RWKV` itself, or that of a file."""
        from bert4keras_rwkv.models import RWKV

        if isinstance(pretrained, RWKV):
            return pretrained
        return RWKV.from_preset(pretrained, **options)

    @property
    def tokenizer_name(self):
        """What tells this vocabulary from others, for lm-eval's caches."""
        return f"{type(self.tokenizer).__name__}-{self.tokenizer.vocab_size}"

    def loglikelihood(self, requests, disable_tqdm=False):
        """For each (context, continuation): the log-probability of the latter in nats, and whether it is the greedy
        answer.
        """
        passages = [
            target_passage(self.tokenizer, *request.args, place=f"Request {number}")
            for number, request in enumerate(requests)
        ]
        found = self._read(passages, disable_tqdm)
        answers = [(float(one.log_p.sum()), bool(one.likeliest.all())) for one in found]
        self._remember("loglikelihood", requests, answers)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """For each (text,): its log-probability in nats after an end token, without the end behind it."""
        end = end_ids(self.tokenizer)
        passages = [passage([(end, False), (self.tokenizer.encode(request.args[0]), True)]) for request in requests]
        answers = [float(found.log_p.sum()) for found in self._read(passages, disable_tqdm)]
        self._remember("loglikelihood_rolling", requests, answers)
        return answers

    def generate_until(self, requests, disable_tqdm=False):
        """For each (context, options): what the model writes on, up to one of the texts `until`, the end of a document,
        or `max_gen_toks` tokens.
        """
        answers = []
        for number, request in enumerate(tqdm(requests, desc="Writing", disable=disable_tqdm)):
            context, options = request.args
            answers.append(self._written(context, options, self._seed + number))
        self._remember("generate_until", requests, answers)
        return answers

    def _written(self, context, options, seed):
        """One answer."""
        until = options.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        ids = [*end_ids(self.tokenizer), *self.tokenizer.encode(context)]
        pieces = self.rwkv.stream(
            ids,
            max_new_tokens=int(options.get("max_gen_toks", NEW_TOKENS)),
            stop_texts=stops,
            sampling=_sampling(options),
            seed=seed,
            state=self._state,
            as_text=True,
        )
        return "".join(pieces)

    def _read(self, passages, quiet):
        """The `Found` of each passage, with a progress bar."""
        with tqdm(total=sum(len(one.ids) for one in passages), desc="Reading", unit="token", disable=quiet) as bar:
            progress = lambda _, tokens: bar.update(tokens)  # noqa: E731
            yield from score_passages(self.rwkv, passages, progress=progress, **self._reading)

    def _remember(self, kind, requests, answers):
        """Tell lm-eval's cache."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)


def _number(value, default):
    """A batch size; 'auto' is the default."""
    return int(value) if str(value).isdecimal() else default


def _sampling(options):
    """The `Sampling` of a task's options: greedy unless it says to draw."""
    if not options.get("do_sample", options.get("temperature", 0) > 0):
        return Sampling(temperature=0.0)
    said = {name: options.get(name) for name in ("temperature", "top_k", "top_p")}
    return Sampling(**{name: value for name, value in said.items() if value is not None})


def main():
    """lm-eval's command. Its bootstrap would fork this process, and JAX, with its threads, does not survive that."""
    import os

    from lm_eval.__main__ import cli_evaluate

    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    cli_evaluate()


if __name__ == "__main__":
    main()
