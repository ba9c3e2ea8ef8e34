"""The walks of docs/architecture.md are the ones that ids, a path, arguments and a batch really take."""

import inspect
import re
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import keras
import pytest
from fastapi.testclient import TestClient

from bert4keras_rwkv.cli import backend, tune
from bert4keras_rwkv.cli.arguments import parser
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.begin import Limits, begin_service
from bert4keras_rwkv.templates import template_of
from bert4keras_rwkv.training import PackedBatches, keras_dataset

pytestmark = pytest.mark.on("torch")  # where nothing is traced, and what is called runs

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = str(ROOT / "bert4keras_rwkv") + "/"
LONGEST = 12  # files


def walk(title):
    """The files of a walk, in the order in which a reader meets them."""
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    (section,) = re.findall(rf"^\*\*{re.escape(title)}\*\*.*?\n\n(.*?)\n\n", text, re.M | re.S)
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.M)


@contextmanager
def calls():
    """Pairs (file, file that a function of it calls), through other packages too; None for the caller's own code. Of
    threads that begin meanwhile, too.
    """
    found = set()

    def file_of(frame):
        code = frame.f_code
        function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or a class
        return code.co_filename.removeprefix(PACKAGE) if function and code.co_filename.startswith(PACKAGE) else None

    def look(frame, event, _):
        if event == "call" and (file := file_of(frame)) is not None:
            above = frame.f_back
            while above is not None and (caller := file_of(above)) is None:
                above = above.f_back
            found.add((None if above is None else caller, file))

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def check(title, found):
    """Each file of a walk is called by one before it, or by the user."""
    files = walk(title)
    assert 0 < len(files) <= LONGEST and len(set(files)) == len(files)
    for number, file in enumerate(files):
        assert {(before, file) for before in (None, *files[:number])} & found, file


def test_from_a_prompt_to_text(model):
    rwkv = RWKV.from_preset(model)
    with calls() as found:
        rwkv.generate("hello", max_new_tokens=3, sampling="top_p", stop_texts="the")
    check("From a prompt to text", found)


def test_from_a_file_to_variables(model):
    with calls() as found:
        RWKV.from_preset(model)
    check("From a file to variables", found)


def test_from_documents_to_a_loss(model):
    rwkv = RWKV.from_preset(model, packed=True)
    with calls() as found:
        batches = PackedBatches([[1, 2, 3, 4]] * 9, length=8, batch_size=2, vocab_size=262)
        trained = rwkv.training_model()
        trained.compile(keras.optimizers.Adam())
        trained.fit(keras_dataset(batches), steps_per_epoch=1, verbose=0)
    check("From documents to a loss", found)


def test_from_arguments_to_a_state(model, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "keep_compiled_programs", lambda: None)
    data = f"{tmp_path}/a.jsonl"
    Path(data).write_text('{"text": "hello the end"}\n' * 9)
    options = ["--steps", "1", "--length", "8", "--batch-size", "2", "--backend", keras.config.backend()]
    arguments = parser().parse_args(
        ["tune", "--model", str(model), "--data", data, "--out", f"{tmp_path}/a.pth", *options]
    )
    with calls() as found:
        tune.run(arguments)
    check("From the arguments of `tune` to a state", found)


def test_from_a_request_to_text(model):
    rwkv = RWKV.from_preset(model)
    asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    with calls() as found:
        service = begin_service(rwkv, template_of("world"), limits=Limits(max_batch=1))
        with TestClient(make_app(service), base_url="http://localhost") as http:
            assert http.post("/v1/chat/completions", json=asked).status_code == 200
    check("From a request to text", found)
