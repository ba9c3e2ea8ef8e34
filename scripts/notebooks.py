"""The notebooks, executed: from their sources, `notebooks/*.py`, to `.ipynb` with outputs.

    python scripts/notebooks.py             # all of them
    python scripts/notebooks.py 3           # those whose name begins with 3, or 03
    python scripts/notebooks.py --check     # execute and write nothing: what continuous integration does

Each runs in a kernel of its own, of this interpreter, in an empty folder of its own that is then removed. It fails if a
cell raises, or says anything on stderr. Needs `pip install 'bert4keras_rwkv[notebooks]'`.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.ops.kernels.kept import NoLibraryError
from bert4keras_rwkv.ops.kernels.library import library

SOURCES = Path(__file__).resolve().parent.parent / "notebooks"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
SECONDS = 600  # a cell may take
# Keras loads TensorFlow, if it is there, to tell what kind of data it is given; it shall not talk about itself.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
# Programs are compiled for a few seconds of use: compiling fast is worth more than running fast.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"


class Kernel(AsyncKernelManager):
    """The interpreter that runs this script, whatever kernels the user has installed."""

    def __init__(self, **options):
        super().__init__(**{**options, "kernel_spec_manager": KernelSpecManager(kernel_dirs=[])})


def read(source):
    """The notebook of a source in jupytext's percent format, without outputs; the same one each time."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.NotebookNode()
    return notebook


def execute(notebook):
    """Fill in the outputs. Raises CellExecutionError where a cell does, RuntimeError where one writes to stderr."""
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name=KERNEL["name"],
            kernel_manager_class=Kernel,
            extra_arguments=["--log-level=ERROR"],  # it warns that it listens on localhost
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment())
    said = [output.text for cell in notebook.cells for output in cell.get("outputs", []) if is_stderr(output)]
    if said:
        raise RuntimeError("It wrote to stderr, which a reader should not see:\n" + "".join(said))


def environment():
    """What a kernel gets: the package of this checkout, and settings of the backends where there are none."""
    own = {"PYTHONPATH": str(SOURCES.parent), "PYTHONUTF8": "1"}
    return {"XLA_FLAGS": XLA_FLAGS, **QUIET, **os.environ, **own}


def is_stderr(output):
    """Whether an output of a cell is what it wrote to stderr."""
    return output.output_type == "stream" and output.name == "stderr"


def last_line(notebook):
    """The last line that a notebook prints: the number that shows that it worked."""
    texts = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    return "".join(texts).rstrip().rpartition("\n")[2]


def run(source, write):
    """Execute one source and write its `.ipynb`, or only execute it. Returns whether it worked."""
    start, computed = time.perf_counter(), computing()
    notebook = read(source)
    try:
        execute(notebook)
    except (CellExecutionError, RuntimeError) as error:
        print(f"{source.stem}: failed\n{error}", file=sys.stderr)
        return False
    if write:
        with atomic_file(source.with_suffix(".ipynb")) as unfinished:
            nbformat.write(notebook, unfinished)
    seconds, computed = time.perf_counter() - start, computing() - computed
    print(f"{source.stem}: {seconds:.0f} s, {computed:.0f} s of computing: {last_line(notebook)}", flush=True)
    return True


def computing():
    """Seconds that the kernels so far kept a core busy; 0 where the system does not say."""
    return os.times().children_user + os.times().children_system


def chosen(names, folder):
    """The sources of a folder whose names begin with one of `names`; all where there are none."""
    starts = tuple(f"{int(name):02}" if name.isdigit() else name for name in names)
    sources = [source for source in sorted(folder.glob("*.py")) if source.name.startswith(starts or "")]
    if not sources:
        raise SystemExit(f"No notebook begins with {' or '.join(starts) or 'anything'} in {folder}.")
    return sources


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 3 or 03_state; all if none")
    parser.add_argument("--check", action="store_true", help="execute and write nothing")
    parser.add_argument("--folder", type=Path, default=SOURCES, help="where the sources are")
    options = parser.parse_args(arguments)
    with contextlib.suppress(NoLibraryError):  # none that cannot be built: then pure ops run
        library()  # else the first notebook says that it builds them
    start = time.perf_counter()
    worked = [run(source, write=not options.check) for source in chosen(options.names, options.folder)]
    print(f"{sum(worked)} of {len(worked)} notebooks in {time.perf_counter() - start:.0f} s")
    return 0 if all(worked) else 1


if __name__ == "__main__":
    sys.exit(main())
