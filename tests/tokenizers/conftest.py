"""A byte-level BPE as those of the Pile's models, trained here on a few words."""

import pytest

WORDS = "the cat and the dog, the hat and the house; naïve café 你好 你们 def f(x): return x  \n    pass" * 5


@pytest.fixture(scope="session")
def bpe_json():
    """The JSON of a tokenizer of 300 ids: two special tokens, 256 bytes, 39 merges, and three runs of spaces."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=297,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([WORDS], trainer)
    bpe.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    return bpe.to_str()
