"""The documents show the formats and versions that the package has."""

import importlib.util
from pathlib import Path

import pytest

from bert4keras_rwkv.weights.formats.registry import formats

pytestmark = pytest.mark.backend_free

FILE = Path(__file__).resolve().parents[2] / "scripts" / "formats_table.py"
SPEC = importlib.util.spec_from_file_location("formats_table", FILE)
formats_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(formats_table)


@pytest.mark.parametrize("document", formats_table.DOCUMENTS)
def test_a_document_shows_the_table_of_the_registry(document):
    """After a change: python scripts/formats_table.py --write."""
    assert formats_table.shown(document) == formats_table.table(formats_table.DOCUMENTS[document])


def test_a_row_says_what_can_be_read_and_written():
    rows = {row.split(" | ")[1]: row.strip("| ").split(" | ")[2:] for row in formats_table.table("en").splitlines()[2:]}
    assert list(rows) == [f"`{name}`" for name in sorted((f.name for f in formats()), key=_read_only)]
    assert rows["`hf`"] == ["both", "read", "both", "both", "both", "–"]
    assert rows["`pth`"] == ["both"] * 6
    assert rows["`bert4keras3`"] == ["–"] * 4 + ["read", "–"]


def _read_only(name):
    return next(not known.written for known in formats() if known.name == name)


@pytest.mark.parametrize("known", formats(), ids=lambda known: known.name)
def test_every_format_is_in_the_document_about_formats(known):
    """Under a heading of its own or with its name in code."""
    text = (FILE.parents[1] / "docs/formats.md").read_text("utf-8")
    assert f"`{known.name}`" in text.split("<!-- formats: end -->")[1]
