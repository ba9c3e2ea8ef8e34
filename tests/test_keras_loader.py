"""A backend that is not there is one sentence that says what to set, and nothing has happened.

Each program runs in a process and a home folder of its own, where the backends of the test's choice cannot be imported.
"""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import bert4keras_rwkv
from bert4keras_rwkv.keras_loader import INSTALLED_BY

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(found.name for found in pkgutil.walk_packages(bert4keras_rwkv.__path__, "bert4keras_rwkv."))
SHORT = 20  # lines, of which a traceback of ours needs up to 16

SET = "set the environment variable KERAS_BACKEND to"
FIRST_IMPORTS = ["from bert4keras_rwkv import build_transformer_model", "import bert4keras_rwkv.models"]
FIRST_IMPORTS += ["import bert4keras_rwkv.training.metrics", "from bert4keras_rwkv.generation import loop"]


def without(missing, code):
    """The program `code` where the packages `missing` are not installed."""
    return f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\n{code}"


@pytest.fixture
def run(tmp_path):
    """Run a program. Returns (exit code, stdout, stderr as lines). settings: what ~/.keras/keras.json holds."""

    def started(code, *arguments, settings=None, **variables):
        if settings is not None:
            (tmp_path / ".keras").mkdir()
            (tmp_path / ".keras/keras.json").write_text(settings)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KERAS", "JAX", "XDG"))}
        environment = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr.splitlines()

    return started


@pytest.mark.parametrize("code", FIRST_IMPORTS)
def test_without_the_default_backend_the_first_import_says_what_to_set(run, tmp_path, code):
    """In a short traceback. Nothing is written, not even Keras' own settings, which would name a backend for ever."""
    code, printed, said = run(without(["tensorflow"], code))
    assert code == 1 and printed == "" and len(said) < SHORT
    assert said[-1] == (
        f"ImportError: Keras would run on 'tensorflow', its default, which is not installed: {SET} jax or torch, "
        "or run `pip install 'bert4keras_rwkv[tensorflow]'`."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "settings", "variables", "told"),
    [
        ("jax", None, {"KERAS_BACKEND": "jax"}, ["'jax', as KERAS_BACKEND says", SET, "tensorflow or torch"]),
        ("torch", None, {"KERAS_BACKEND": "torch"}, ["'torch', as KERAS_BACKEND says", "jax or tensorflow", "[torch]"]),
        ("torch", '{"backend": "torch"}', {}, ["'torch', as ", "keras.json says", SET, "jax or tensorflow"]),
        ("tensorflow", "{}", {"KERAS_BACKEND": ""}, ["its default", SET]),
        ("tensorflow", "no JSON", {}, ["its default", SET]),
        (
            "lm_eval",
            '{"backend": "torch"}',
            {"KERAS_BACKEND": "jaxx"},
            ["'jaxx', as KERAS_BACKEND says", "none of"],
        ),
        (
            "lm_eval",
            '{"backend": "Jax"}',
            {},
            ["'Jax', as ", "keras.json says, which is none of jax"],
        ),
    ],
)
def test_who_chose_the_backend_is_told(run, missing, settings, variables, told):
    code, _, said = run(without([missing], FIRST_IMPORTS[1]), settings=settings, **variables)
    assert code == 1 and len(said) < SHORT and not [part for part in told if part not in said[-1]]


def test_where_none_is_installed_one_is_recommended(run):
    _, _, said = run(without(list(INSTALLED_BY), FIRST_IMPORTS[1]))
    assert said[-1].endswith("which is not installed: run `pip install 'bert4keras_rwkv[tensorflow]'`.")


def test_whatever_is_imported_first_is_told_so_and_leaves_nothing_behind(run):
    """Each module alone either needs no Keras or raises the sentence; the environment stays what it was."""
    code = f"""
import importlib, json, os
before, failed = dict(os.environ), []
for name in {MODULES!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append((name, str(error)))
print(json.dumps([failed, "keras" in sys.modules, dict(os.environ) == before]))
"""
    code, printed, said = run(without(["tensorflow", "lm_eval"], code))
    assert code == 0, said
    failed, keras, same = json.loads(printed)
    assert not keras and same
    assert {name.split(".")[1] for name, _ in failed} >= {"ops", "layers", "models", "generation", "training"}
    assert {error.partition(": ")[0] for name, error in failed if not name.endswith("lm_eval_model")} == {
        "Keras would run on 'tensorflow', its default, which is not installed"
    }


def test_after_the_sentence_the_same_process_can_choose(run):
    """Nothing stays half loaded."""
    code = f"""
import contextlib, os
with contextlib.suppress(ImportError):
    {FIRST_IMPORTS[0]}
os.environ["KERAS_BACKEND"] = "numpy"
{FIRST_IMPORTS[0]}
import keras
print(keras.config.backend())
"""
    code, printed, said = run(without(["tensorflow"], code))
    assert code == 0, said
    assert printed == "numpy\n"


@pytest.mark.parametrize(
    ("command", "variables", "told"),
    [
        (
            ["generate", "--prompt", "A", "--backend", "torch"],
            {},
            "as --backend says, which is not installed: set --b",
        ),
        (
            ["generate", "--prompt", "A"],
            {"KERAS_BACKEND": "torch"},
            f"not installed: {SET} jax or tensorflow",
        ),
        (
            ["convert", "finch-jargon", "a.pth", "--check"],
            {"KERAS_BACKEND": "torc"},
            "as KERAS_BACKEND says, which is none of",
        ),
    ],
)
def test_the_command_line_says_it_in_one_line(run, command, variables, told):
    code = "from bert4keras_rwkv.cli import main\nsys.exit(main())"
    code, printed, said = run(without(["torch"], code), *command, **variables)
    assert code == 1 and printed == "" and len(said) == 1 and told in said[0]


@pytest.mark.parametrize("missing", ["jax", "tensorflow"])
def test_without_a_choice_the_command_line_takes_jax(run, missing):
    """Whatever Keras' own default is."""
    code = "from bert4keras_rwkv.cli.backend import choose_engine\nprint(choose_engine())"
    code, printed, said = run(without([missing], code))
    if missing == "jax":
        assert code == 1 and "'jax', the default of this command, which is not installed" in said[-1]
    else:
        assert code == 0 and printed == "jax\n"
