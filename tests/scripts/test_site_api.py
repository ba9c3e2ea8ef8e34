"""Every public name has an entry among the API pages of the documentation site; docstrings are easy to read there."""

import ast
import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("site_api", ROOT / "scripts" / "site_api.py")
site_api = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site_api)

PACKAGES = ("", ".training", ".training.callbacks", ".evaluation", ".layers", ".models", ".tokenizers", ".weights")
DOCUMENTS = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.py")]


def imports(text):
    """(module, name) for each name that the Python in a document imports from the package."""
    for module, names in re.findall(r"^from (bert4keras_rwkv[\w.]*) import (\([^)]*\)|.*)", text, re.M):
        for alias in ast.parse(f"from {module} import {names}").body[0].names:
            yield module, alias.name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_entry(package):
    """As Python sees the names; the script reads them from the source."""
    module = f"{site_api.PACKAGE}{package}"
    entries = {(entry.module, entry.name) for entry in site_api.entries()}
    assert {site_api.defined(site_api.listed(module)[name], name) for name in import_module(module).__all__} <= entries


def test_every_name_that_the_documents_import_has_an_entry():
    entries = {(entry.module, entry.name) for entry in site_api.entries()}
    names = {found for document in DOCUMENTS for found in imports(document.read_text("utf-8"))}
    assert len(names) > 20
    assert not {(m, n) for m, n in names if site_api.defined(site_api.listed(m).get(n, m), n) not in entries}


def test_every_entry_stands_on_one_page_and_in_the_index():
    pages = site_api.pages()
    index = pages.pop("index")
    for entry in site_api.entries():
        assert [name for name, text in pages.items() if f"::: {entry.path}\n" in text] == [entry.page]
        assert f"| [`{entry.public}`]({entry.page}.md#{entry.path}) | " in index


def test_the_index_says_what_each_name_is():
    told = {entry.public: site_api.first_sentence(entry) for entry in site_api.entries()}
    assert told["bert4keras_rwkv.RWKV"] == "A language model."
    assert told["bert4keras_rwkv.training.learning_rates.FULL"].startswith("all weights")
    assert not [name for name, text in told.items() if not text]


def test_a_name_without_a_page_is_an_error():
    with pytest.raises(ValueError, match=r"No page of PAGES is for `p\.f`"):
        _ = site_api.Entry("p.f", "bert4keras_rwkv.modelsmith", "f").page


def test_arguments_of_a_docstring_become_a_list():
    text = "Read.\n\nids (B, T) int: tokens. state, present:\nas there. With None: nothing."
    text += " Returns ids: all of them.\n\n    y = x"
    assert site_api.as_list(text, {"ids", "state", "present"}) == (
        "Read.\n\n- **`ids`** (B, T) int: tokens.\n- **`state, present`**: as there. With None: nothing.\n\n"
        "Returns ids: all of them.\n\n    y = x"
    )


def test_a_docstring_without_arguments_stays_as_it_is():
    text = "One thing: another.\nMore of it.\n\nRaises:\n    ValueError: ids: wrong."
    assert site_api.as_list(text, {"ids"}) == text
    assert site_api.as_list(text, set()) == text
