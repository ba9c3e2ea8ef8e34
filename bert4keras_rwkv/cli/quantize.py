"""`quantize`: a model into the preset of one whose matrices take fewer bytes."""

from pathlib import Path

from bert4keras_rwkv.atomic import check_folder
from bert4keras_rwkv.cli.arguments import UsageError
from bert4keras_rwkv.cli.data import named_tokenizer
from bert4keras_rwkv.cli.generate import load
from bert4keras_rwkv.data.convert import files_of, kind_of, read_documents


def run(arguments):
    """Load the model, quantise it, calibrated if texts are given, and write it."""
    out = Path(arguments.out)
    if arguments.compensate and arguments.calibrate is None:
        raise UsageError("--compensate needs to know what the matrices multiply. Give texts: --calibrate FILE.")
    check_folder(out)  # before seconds go by with loading a model
    if arguments.calibrate is not None:
        files_of(arguments.calibrate, kind_of(arguments.calibrate, arguments.format))
    rwkv = load(arguments, None if arguments.tokenizer is None else named_tokenizer(arguments.tokenizer))
    texts = None if arguments.calibrate is None else _texts(arguments, rwkv)
    rwkv.quantize(arguments.to, calibrate=texts, compensate=arguments.compensate)
    rwkv.save_to_preset(out)
    print(f"Wrote {out}")


def _texts(arguments, rwkv):
    """The ids of the first documents, as many as are read for calibration."""
    from bert4keras_rwkv.models.calibration import MOST

    found = read_documents(arguments.calibrate, rwkv.tokenizer, arguments.format, arguments.separator)
    texts = []
    for _, one in found:
        if len(one.ids):
            texts.append(one.ids)
        if sum(map(len, texts)) >= MOST:
            break
    if not texts:
        raise ValueError(f"'{arguments.calibrate}' holds no document, or none that is not empty.")
    return texts
