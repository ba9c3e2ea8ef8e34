"""The documents tell the truth: their Python runs, their links lead somewhere, both languages show the same code."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.versions import versions

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", "README.zh-CN.md"]
GUIDE_NAMES = [
    "bench",
    "bert4keras3",
    "chat",
    "from-scratch",
    "environment",
    "evaluation",
    "kernels",
    "keras-hub-programs",
    "long-documents",
    "quantised",
    "rwkv-programs",
    "serving",
    "strategies",
    "training",
    "tuning",
]
# Each in both languages.
GUIDES = [f"docs/{name}.md" for name in GUIDE_NAMES]
DOCUMENTS = [*READMES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/architecture.md", "docs/formats.md"]
DOCUMENTS += [path for guide in GUIDES for path in (guide, guide.replace("docs/", "docs/zh/"))]
CHECKPOINT = "RWKV-x060-World-1B6.pth"


def python_in(document):
    """All Python blocks of a document as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / document).read_text("utf-8"), re.S))


def without_comments_and_texts(code):
    """What two translations of one program share."""
    code = re.sub(r"\s*#.*", "", code)
    return re.sub(r'"[^"\n]*"', '""', code)


def test_python_in_the_readme_runs(tmp_path):
    """With the shipped model in the place of a checkpoint that a user has."""
    (shipped,) = (ROOT / "bert4keras_rwkv" / "presets").glob("*/config.json")
    code = python_in("README.md")
    assert code.count(f'"{CHECKPOINT}"') == 1
    run(code.replace(f'"{CHECKPOINT}"', repr(str(shipped.parent))), tmp_path)
    assert (tmp_path / "my_model" / "config.json").exists()


@pytest.mark.parametrize("guide", GUIDES)
def test_python_in_a_guide_runs(guide, tmp_path):
    run(python_in(guide), tmp_path)


@pytest.mark.parametrize("guide", GUIDES)
def test_both_languages_show_the_same_code(guide):
    english, chinese = (without_comments_and_texts(python_in(d)) for d in (guide, guide.replace("docs/", "docs/zh/")))
    assert english == chinese


@pytest.mark.parametrize("guide", ["docs/from-scratch.md", "docs/zh/from-scratch.md"])
def test_the_configuration_that_a_guide_shows_is_one(guide):
    """It holds what is needed and no more, and the keys named beside it are all that a version may have of its own."""
    text = (ROOT / guide).read_text("utf-8")
    keys = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    assert RWKVConfig.from_dict(keys).model == "rwkv7"
    own = {name for version in versions().values() for name in version.keys} - set(keys)
    assert own <= set(re.findall(r"`(\w+)`", text))
    for name in keys:
        with pytest.raises(ValueError):
            RWKVConfig.from_dict({other: value for other, value in keys.items() if other != name})


def run(code, folder):
    """Run a program in a folder of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_both_readmes_show_the_same_code():
    english, chinese = (without_comments_and_texts(python_in(readme)) for readme in READMES)
    assert english == chinese


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document):
    targets = re.findall(r"\]\(([^)#\s]+)\)", (ROOT / document).read_text("utf-8"))
    missing = [t for t in targets if "://" not in t and not (ROOT / document).parent.joinpath(t).exists()]
    assert not missing


@pytest.mark.parametrize("readme", [*READMES, "docs/formats.md", "docs/training.md", *GUIDES])
def test_commands_in_the_readme_exist(readme):
    """Every `make` target and every option of the command line that the text shows."""
    text = (ROOT / readme).read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^    make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for line in re.findall(r"^    bert4keras-rwkv (.*?)(?:  #.*)?$", text, re.M):
        command, *options = line.split()
        assert {o for o in options if o.startswith("--")} <= options_of(command)


@functools.cache
def options_of(command):
    """The options that `--help` shows."""
    shown = subprocess.run(
        [sys.executable, "-m", "bert4keras_rwkv", command, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert shown.returncode == 0, shown.stderr
    return set(re.findall(r"--[a-z-]+", shown.stdout))
