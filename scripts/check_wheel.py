"""The package as users get it: what is built holds what git tracks, and works where nothing else is.

    python scripts/check_wheel.py

Builds the source distribution and the wheel from a copy of the files that git tracks, and a second wheel from the
source distribution; compares what is in them; installs the wheel, with JAX alone, into an empty environment outside
the checkout; and there runs the command line and the first program of both READMEs with the shipped model. Needs git
and `pip install 'bert4keras_rwkv[dev]'`, and what the package depends on from the package index.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "bert4keras_rwkv"
READMES = ("README.md", "README.zh-CN.md")
CHECKPOINT = "RWKV-x060-World-1B6.pth"  # that the READMEs load
SHIPPED = "finch-jargon"
DIST_INFO = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
GENERATED = re.compile(rf"PKG-INFO|setup\.cfg|{PACKAGE}\.egg-info/.*")  # what setuptools adds to a source distribution
SECONDS = 300  # a program may take
# Programs are compiled for a few seconds of use: compiling fast is worth more than running fast.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"

FIRST_IMPORT = f"import {PACKAGE}.models"
COMMANDS = (
    ("generate", "--prompt", "A hacker is", "--max-length", "20", "--seed", "1"),
    ("info", SHIPPED),
    ("convert", SHIPPED, "converted.pth", "--check"),
    ("tune", "--data", "texts.jsonl", "--out", "tuned.pth", "--steps", "2", "--batch-size", "2", "--length", "32"),
)


class Failed(Exception):
    """What is built is not what it should be."""


def tracked(root=ROOT):
    """The files that git tracks and that are still there, as paths with '/' from the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True).stdout
    return sorted(name for name in listed.decode().split("\0") if name and (root / name).is_file())


def export(names, target, root=ROOT):
    """Copy these files of the checkout, as they are now, into the folder `target`."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)


def build(source, target, *kinds):
    """Build the folder `source` with the tools of this environment. kinds: '--sdist', '--wheel'. Returns the files."""
    call(sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", target, source)
    return sorted(target.iterdir())


def in_wheel(wheel):
    """{name: content} of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def in_sdist(sdist):
    """{name: content} of a source distribution, without the folder that everything in it lies in."""
    with tarfile.open(sdist) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        return {str(PurePosixPath(*Path(m.name).parts[1:])): archive.extractfile(m).read() for m in files}


def wheel_faults(wheel, names):
    """Where the files of a wheel differ from the package's files among those that git tracks."""
    described = {name.partition(".dist-info/")[2] for name in wheel if ".dist-info/" in name}
    held = {name for name in wheel if ".dist-info/" not in name}
    wanted = {name for name in names if name.startswith(f"{PACKAGE}/")}
    yield from differences("the wheel", held, wanted)
    yield from differences("the wheel's description", described, set(DIST_INFO))


def sdist_faults(sdist, names):
    """Where the files of a source distribution differ from those that git tracks."""
    yield from differences("the source distribution", {n for n in sdist if not GENERATED.fullmatch(n)}, set(names))


def differences(where, held, wanted):
    """One line a file that is missing, or too many."""
    yield from (f"{where} lacks {name}, which git tracks" for name in sorted(wanted - held))
    yield from (f"{where} has {name}, which git does not track" for name in sorted(held - wanted))


def changed(where, held, wanted):
    """One line a file that has another content in `held` than in `wanted`."""
    yield from (f"{where} has another {name}" for name in sorted(set(held) & set(wanted)) if held[name] != wanted[name])


def built(folder):
    """Build everything in a folder of its own. Returns the wheel. Raises Failed if it does not hold what git tracks."""
    names = tracked()
    export(names, folder / "export")
    sdist, wheel = sorted(build(folder / "export", folder / "dist", "--sdist", "--wheel"), key=lambda p: p.suffix)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (again,) = build(folder / sdist.name.removesuffix(".tar.gz"), folder / "again", "--wheel")
    call(sys.executable, "-m", "twine", "--no-color", "check", "--strict", sdist, wheel)
    sources = {name: (folder / "export" / name).read_bytes() for name in names}
    first, second, source = in_wheel(wheel), in_wheel(again), in_sdist(sdist)
    faults = [
        *wheel_faults(first, names),
        *sdist_faults(source, names),
        *differences("the wheel of the source distribution", set(second), set(first)),
        *changed("the wheel", first, sources),
        *changed("the source distribution", source, sources),
        *changed("the wheel of the source distribution", second, first),
    ]
    if faults:
        raise Failed("\n".join(faults))
    return wheel


def install(wheel, folder):
    """A new environment with the wheel and what it needs, in the tested versions. Returns the folder of programs."""
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", programs / "python")
    call(*pip, "install", "--no-compile", "-c", ROOT / "constraints.txt", wheel)
    call(*pip, "check")
    return programs


def first_program(document):
    """The first Python block of a document."""
    return re.search(r"```python\n(.*?)```", document, re.S)[1]


def use(programs, folder):
    """Run what a new user would, in an empty folder that is the home folder too, with nothing set but for speed."""
    folder.mkdir()
    environment = {"HOME": str(folder), "PATH": os.pathsep.join([str(programs), os.defpath])}
    environment |= {"PYTHONUTF8": "1", "XLA_FLAGS": XLA_FLAGS}
    python = shutil.which("python", path=str(programs))
    where = {"cwd": folder, "env": environment}
    with step("import without a backend"):
        refused(python, "-c", FIRST_IMPORT, **where)
    (folder / "texts.jsonl").write_text('{"text": "A short text to tune on."}\n' * 20, "utf-8")
    for command in COMMANDS:
        with step(f"bert4keras-rwkv {command[0]}"):
            call(shutil.which("bert4keras-rwkv", path=str(programs)), *command, **where)
    installed = call(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__path__[0])", **where).strip()
    shutil.copytree(Path(installed, "presets", SHIPPED), folder / CHECKPOINT)  # a folder is a checkpoint too
    for readme in READMES:
        with step(f"the first program of {readme}"):
            call(python, "-c", first_program((ROOT / readme).read_text("utf-8")), **where)


def refused(*command, **where):
    """Raises Failed unless a program ends with a sentence about KERAS_BACKEND."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, **where)
    if done.returncode == 0 or "KERAS_BACKEND" not in done.stderr.rstrip().rpartition("\n")[2]:
        raise Failed(f"{command[-1]!r} did not say to set KERAS_BACKEND, but:\n{done.stdout}{done.stderr}")


def call(*command, **where):
    """Run a program that has to succeed. Returns what it wrote."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=SECONDS, **where)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def step(name):
    """Say what is done, and how long it took."""
    start = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def main():
    """Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        folder = Path(name)
        try:
            with step("build and compare"):
                wheel = built(folder)
            with step("install"):
                programs = install(wheel, folder / "environment")
            use(programs, folder / "home")
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
