"""The notebooks are made from their sources, ran whole, and show nothing that a reader should not see.

That they still run, and that each ends well, is `make test-notebooks`.
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "notebooks.py"
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
LOCAL = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|var|opt|work|mnt|Users|private)/|site-packages|[A-Z]:\\\\")
LARGEST = 300_000  # bytes


def jupytext_cells(source):
    """(kind, text) of each cell of a source."""
    import jupytext

    return [(cell.cell_type, cell.source) for cell in jupytext.read(source, fmt="py:percent").cells]


def notebook(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def outputs(source):
    return [output for cell in notebook(source).cells for output in cell.get("outputs", [])]


def test_every_notebook_has_a_source():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {path.stem for path in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_its_source_executed(source):
    """The same cells, run in order from the first. After a change: make notebooks."""
    written = notebook(source)
    assert [(cell.cell_type, cell.source) for cell in written.cells] == jupytext_cells(source)
    counts = [cell.execution_count for cell in written.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    nbformat.validate(written)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_shows_results_and_no_trouble(source):
    """No error, nothing from stderr, no path of the machine that it ran on, and not too large for a repository."""
    kinds = {output.output_type for output in outputs(source)}
    assert kinds and "error" not in kinds
    assert not [output.text for output in outputs(source) if output.get("name") == "stderr"]
    shown = [line for line in source.with_suffix(".ipynb").read_text("utf-8").splitlines() if "image/png" not in line]
    assert not [line for line in shown if LOCAL.search(line)]
    assert source.with_suffix(".ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_ends_with_a_number_that_it_checks(source):
    last = notebook(source).cells[-1]
    assert last.cell_type == "code" and re.search(r"^\s*assert ", last.source, re.M)
    assert re.search(r"\d", "".join(output.text for output in last.outputs))


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_lists_every_notebook(readme):
    assert re.findall(r"\(notebooks/(\w+)\.ipynb\)", (ROOT / readme).read_text("utf-8")) == [s.stem for s in SOURCES]


def execute(folder, *options):
    """The script on the sources of a folder, in a process of its own: (exit status, stdout, stderr)."""
    command = [sys.executable, SCRIPT, "--folder", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_source_becomes_a_notebook_and_its_files_are_gone(tmp_path):
    (tmp_path / "01_sum.py").write_text("# %%\nopen('made.txt', 'w').close()\n\n# %%\nprint('loss', 1 + 1)\n")
    status, out, err = execute(tmp_path)
    assert (status, err) == (0, "") and "loss 2" in out
    assert {path.name for path in tmp_path.iterdir()} == {"01_sum.py", "01_sum.ipynb"}
    assert nbformat.read(tmp_path / "01_sum.ipynb", as_version=4).cells[1].outputs[0].text == "loss 2\n"


@pytest.mark.parametrize("code", ["assert 3 < 2, 'loss rose'", "import sys; print('loss rose', file=sys.stderr)"])
def test_a_notebook_that_fails_is_not_written(tmp_path, code):
    """A cell that raises or warns: the exit status says it, and the notebook of before stays."""
    (tmp_path / "01_sum.py").write_text(f"# %%\n{code}\n")
    (tmp_path / "01_sum.ipynb").write_text("as before")
    status, out, err = execute(tmp_path)
    assert status == 1 and "loss rose" in err and "0 of 1" in out
    assert (tmp_path / "01_sum.ipynb").read_text() == "as before"


def test_check_writes_nothing(tmp_path):
    (tmp_path / "01_sum.py").write_text("# %%\nprint('loss', 1 + 1)\n")
    (tmp_path / "02_other.py").write_text("# %%\nraise ValueError\n")
    status, out, _ = execute(tmp_path, "--check", "1")
    assert status == 0 and "loss 2" in out
    assert {path.name for path in tmp_path.iterdir()} == {"01_sum.py", "02_other.py"}
