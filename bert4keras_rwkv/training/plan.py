"""What decides the weights that a training or a tuning ends with, and the batches that it means. No Keras."""

from dataclasses import asdict, dataclass

from bert4keras_rwkv.data.batches import IDS, RESET, PackedBatches
from bert4keras_rwkv.data.documents import sizes_of
from bert4keras_rwkv.training import learning_rates
from bert4keras_rwkv.training.checks import check_counts, check_positive

MODES = ("state", "lora", "state+lora", "prompt")
QUANTISED = ("int8", "int4")
SPARE_ROWS = 256  # embeddings are padded to round sizes; the Pile's has 155 rows more than its vocabulary


@dataclass(frozen=True)
class TrainingPlan:
    """What decides the weights that a training ends with, beside model and data.

    steps of batch_size rows of `length` tokens. learning_rate: the peak. weight_decay, warm_up: see `training.recipe`.
    report_every: steps between two looks at the loss, and at held-out data. seed: orders the documents.
    """

    steps: int
    batch_size: int
    length: int
    learning_rate: float
    weight_decay: float
    warm_up: int = 10
    report_every: int = 50
    seed: int = 0

    def __post_init__(self):
        check_counts(self, steps=1, batch_size=1, report_every=1, length=2, warm_up=0, seed=0)
        check_positive(self, "learning_rate")
        check_positive(self, "weight_decay", or_0=True)
        if self.warm_up >= self.steps:
            raise ValueError(
                f"The warm-up has to end before the last step. Received: steps={self.steps}, warm_up={self.warm_up}. "
                f"Take a `warm_up` below {self.steps}, or more steps."
            )


@dataclass(frozen=True)
class Tuning:
    """What is tuned and how.

    mode: one of `MODES`. time_shift: tune the last inputs of the layers too, with the state of the recurrence. rank,
    alpha, targets: of the LoRA, see `RWKV.enable_lora`. prompts: texts, of mode 'prompt'. steps: batches of batch_size
    rows of `length` tokens; None: as many as `epochs` times through the data takes. learning_rate: its peak; None: what
    `learning_rates` says. quantize: 'int8' or 'int4', in which the base is stored. seed: of the LoRA, of the order of
    documents, and of texts written.
    """

    mode: str = "state"
    time_shift: bool = False
    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    prompts: tuple[str, ...] = ()
    steps: int | None = 200
    epochs: int = 1
    batch_size: int = 8
    length: int = 256
    learning_rate: float | None = None
    quantize: str | None = None
    seed: int = 0

    def __post_init__(self):
        for name, known in (("mode", MODES), ("quantize", (None, *QUANTISED))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` is one of {known}. Received: {name}={getattr(self, name)!r}.")
        steps = {} if self.steps is None else {"steps": 1}
        check_counts(self, rank=1, **steps, epochs=1, batch_size=1, length=2, seed=0)
        for name in ("alpha", "learning_rate"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if bool(self.prompts) != (self.mode == "prompt"):
            raise ValueError("The mode 'prompt' needs a prompt, and no other mode takes one.")
        if self.time_shift and not self.has_state:
            raise ValueError("`time_shift` belongs to a state: take the mode 'state', 'state+lora' or 'prompt'.")
        if not self.has_lora and (self.alpha is not None or self.targets is not None):
            raise ValueError("`alpha` and `targets` belong to a LoRA: take the mode 'lora' or 'state+lora'.")

    @property
    def has_state(self):
        return self.mode != "lora"

    @property
    def has_lora(self):
        return "lora" in self.mode

    @property
    def rate(self):
        """The peak of the learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        state = learning_rates.STATE_AND_SHIFTS if self.time_shift else learning_rates.STATE
        both, lora, prompt = learning_rates.STATE_AND_LORA, learning_rates.LORA, learning_rates.PROMPT
        return {"state": state, "lora": lora, "state+lora": both, "prompt": prompt}[self.mode]


def check_vocabulary(tokenizer, vocab_size):
    """A tokenizer fits a model that has a row for every id, and not many more.

    Raises:
        ValueError: another vocabulary size, and what to do.
    """
    if tokenizer is None or tokenizer.vocab_size <= vocab_size <= tokenizer.vocab_size + SPARE_ROWS:
        return
    raise ValueError(
        f"The tokenizer has ids up to {tokenizer.vocab_size - 1}, and the model {vocab_size} rows for ids. Set "
        f'"vocab_size": {tokenizer.vocab_size} in its configuration, or name its own tokenizer.'
    )


def packed(documents, plan, vocab_size):
    """The batches to train on: rows without padding."""
    return PackedBatches(documents, plan.length, plan.batch_size, plan.seed, vocab_size=vocab_size)


def packed_held_out(documents, plan, vocab_size):
    """The batches to look at the loss of, in the order of the file; fewer rows a batch if there are not enough."""
    sizes = sizes_of(documents)
    tokens = int(sizes.sum() + (sizes > 0).sum())  # one more behind each
    rows = max(min(plan.batch_size, tokens // plan.length), 1)
    return PackedBatches(documents, plan.length, rows, seed=None, vocab_size=vocab_size)


def predicted(batch):
    """How many tokens of a packed batch are predicted: none that begins a row or a document."""
    return batch[IDS][:, 1:].size - int(batch[RESET][:, 1:].sum())


def settings_of(rwkv, batches, plan):
    """What a `Folder` remembers of a training."""
    return {
        **asdict(plan),
        "model": rwkv.config.to_dict(),
        "data": batches.order,
        "dtype": rwkv.backbone.dtype_policy.name,
    }
