"""The shape of the house: imports go down only and never in a circle, importing does nothing, errors are errors.

The picture is in docs/architecture.md. A part may import only parts that stand below it in FLOORS.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.state import RWKVState

pytestmark = pytest.mark.backend_free

PACKAGE = Path(__file__).resolve().parent.parent / "bert4keras_rwkv"
FLOORS = [
    {"keras_loader", "untrusted", "atomic"},
    {"public_names"},
    {"versions"},
    {"config", "state", "tokenizers", "packing", "presets", "strategy"},
    {"ops", "templates"},
    {"weights", "data"},
    {"layers", "generation"},
    {"models"},
    {"training", "bert4keras3"},
    {"evaluation"},
    {"session"},
    {"chat"},
    {"server"},
    {"cli"},
]
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
MAY_ASK_BACKEND = ("ops/", "bert4keras3/backend.py")
# What Keras' layers say of a LoRA and of quantisation.
KERNELS = ("layers/projection.py", "layers/packed.py", "layers/halves.py")
OF_PROJECTIONS = ("_kernel", "lora_enabled", "lora_kernel_a", "lora_kernel_b", "lora_alpha", "quantization_mode")
HEAVY = ("keras", "jax", "jaxlib", "tensorflow", "torch")


def modules():
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def part_of(module):
    return module.split("/")[0].removesuffix(".py")


def names_imported(tree, module):
    """(node, path) for each name of the package that `module`, a path such as "ops/scan.py", imports anywhere. The path
    is a list of str, without the package.
    """
    here = [PACKAGE.name, *Path(module).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            targets = [base + [alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == PACKAGE.name and len(target) > 1:
                yield node, target[1:]


def imported(node):
    """The packages that an import statement names, without those below this module."""
    if isinstance(node, ast.ImportFrom):
        return {node.module.partition(".")[0]} if node.module and not node.level else set()
    return {alias.name.partition(".")[0] for alias in node.names}


class AtImport(ast.NodeVisitor):
    """Collects what runs when a module is imported: all but the bodies of functions (defaults and decorators run)."""

    def __init__(self):
        self.nodes = []

    def visit(self, node):
        self.nodes.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            for early in [*getattr(node, "decorator_list", []), *defaults]:
                self.visit(early)
        else:
            self.generic_visit(node)


def run_at_import(tree):
    visitor = AtImport()
    visitor.visit(tree)
    return visitor.nodes


def dotted(node):
    """'os.environ' for the expression os.environ, None for what is not a chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return None


def _named(node):
    """The attribute that a node asks for, by `.name` or as a text, 'name'."""
    return node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None


def faults_in(source, module):
    """Every broken rule in one module, as "line: what". The rules themselves are tested below on bad examples."""
    tree = ast.parse(source)
    mine = part_of(module)
    for node, (other, *_) in names_imported(tree, module):
        if mine in FLOOR and other != mine and FLOOR.get(other, -1) >= FLOOR[mine]:
            yield f"{node.lineno}: {mine} imports {other}, which does not stand below it"
    for node in run_at_import(tree):
        if dotted(node) in ("os.environ", "os.getenv", "environ", "getenv"):
            yield f"{node.lineno}: reads the environment at import"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield f"{node.lineno}: star import"
        elif isinstance(node, ast.Import | ast.ImportFrom) and "keras" in imported(node):
            yield f"{node.lineno}: imports Keras itself, not `from bert4keras_rwkv.keras_loader import keras, ops`"
        elif isinstance(node, ast.Assert):
            yield f"{node.lineno}: assert; raise an error that says the rule, what came, and the way out"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{node.lineno}: except without a class"
        elif isinstance(node, ast.Attribute) and node.attr == "backend" and not module.startswith(MAY_ASK_BACKEND):
            yield f"{node.lineno}: asks which backend runs; only ops/ may"
        elif _named(node) in OF_PROJECTIONS and module not in KERNELS:
            yield f"{node.lineno}: asks Keras for `{_named(node)}`; only layers/projection.py may"
        elif isinstance(node, ast.Call) and dotted(node.func) in ("eval", "exec"):
            yield f"{node.lineno}: {node.func.id} of data"


def file_of(name, files):
    """The file of `files` in which a name, a list of str, is found: its own, or the one that holds it."""
    paths = ["/".join(name[:count]) for count in (len(name), len(name) - 1)]
    return next((file for path in paths for file in (f"{path}.py", f"{path}/__init__.py") if file in files), None)


def imports_between(sources):
    """{file: [(line, file that it imports, whether when it is imported itself)]}. sources: file -> its text."""
    found = {}
    for file, source in sources.items():
        tree = ast.parse(source)
        early = set(map(id, run_at_import(tree)))
        named = ((node, file_of(name, sources)) for node, name in names_imported(tree, file))
        found[file] = [(node.lineno, other, id(node) in early) for node, other in named if other not in (None, file)]
    return found


def reached(file, imports, late=True):
    """All files that a file imports, itself and through others; without `late` only those that run when it does."""
    seen, waiting = set(), [file]
    while waiting:
        new = {other for _, other, early in imports[waiting.pop()] if early or late} - seen
        seen |= new
        waiting += new
    return seen


def circles_and_idle_imports(sources):
    """Every circle, in which a late import counts too, and every late import that saves nothing, as "file: what".

    An import inside a function has one reason here: a file that loads no Keras uses one that does.
    """
    imports = imports_between(sources)
    keras = re.compile(r"^from bert4keras_rwkv\.keras_loader import .*\b(keras|ops)$", re.M)
    with_keras = {file for file, text in sources.items() if keras.search(text)}
    loads = {file for file in sources if with_keras & {file, *reached(file, imports, late=False)}}
    for file in sources:
        if file in reached(file, imports):
            yield f"{file}: imports itself, through others"
        for line, other, early in imports[file]:
            if not early and (file in loads or other not in loads | {"keras_loader.py"}):
                yield f"{file}: line {line} imports {other} late, which saves nothing"


def test_files_import_in_one_direction_and_when_they_are_imported():
    assert not list(circles_and_idle_imports({file: (PACKAGE / file).read_text("utf-8") for file in modules()}))


@pytest.mark.parametrize(
    ("faults", "one", "other"),
    [
        (2, "from bert4keras_rwkv.ops import b", "from bert4keras_rwkv.ops import a"),
        (3, "from bert4keras_rwkv.ops import b", "def f():\n    from bert4keras_rwkv.ops.a import x"),
        (1, "def f():\n    from bert4keras_rwkv.ops import b", ""),
        (1, "from bert4keras_rwkv.keras_loader import ops\ndef f():\n    from . import b", ""),
        (0, "def f():\n    from bert4keras_rwkv.ops import b", "from bert4keras_rwkv.keras_loader import keras"),
        (0, "from bert4keras_rwkv.ops import b", ""),
    ],
)
def test_a_circle_and_an_idle_import_are_seen(faults, one, other):
    assert len(list(circles_and_idle_imports({"ops/a.py": one, "ops/b.py": other}))) == faults


@pytest.mark.parametrize("module", modules())
def test_module_keeps_the_rules(module):
    faults = list(faults_in((PACKAGE / module).read_text("utf-8"), module))
    assert not faults, f"{module}\n" + "\n".join(faults)


def test_every_part_has_a_floor():
    assert {part_of(module) for module in modules()} - {"__init__", "__main__"} <= set(FLOOR)


def test_every_folder_of_modules_is_a_package():
    """Python imports a folder without `__init__.py` too, but what is installed lacks it."""
    folders = {PACKAGE / folder for module in modules() for folder in Path(module).parents}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops/a.py", "from ..layers import block"),
        ("ops/a.py", "from .. import models"),
        ("ops/kernels/a.py", "from ...weights import rules"),
        ("ops/a.py", "def f():\n    from bert4keras_rwkv.generation import loop"),
        ("layers/a.py", "from ..generation import sampling"),
        ("config.py", "import bert4keras_rwkv.state"),
        ("config.py", "import os\nHOME = os.environ['HOME']"),
        ("config.py", "import os\ndef f(home=os.getenv('HOME')): pass"),
        ("config.py", "from os import *"),
        ("config.py", "def f(x):\n    assert x"),
        ("config.py", "try:\n    pass\nexcept:\n    pass"),
        ("layers/a.py", "from ..keras_loader import keras\ndef f():\n    return keras.backend.backend()"),
        ("layers/a.py", "import keras"),
        ("models/a.py", "def f(layer):\n    return layer.lora_enabled"),
        ("models/a.py", "def f(layer):\n    return getattr(layer, 'quantization_mode', None)"),
        ("layers/a.py", "def f():\n    from keras import ops"),
        ("layers/a.py", "from keras.src.trainers import data_adapters"),
        ("keras_loader.py", "from .config import RWKVConfig"),
        ("tokenizers/a.py", "def f(line):\n    return eval(line)"),
    ],
)
def test_a_broken_rule_is_seen(module, source):
    """The check itself: each of these modules breaks one rule."""
    assert len(set(faults_in(source, module))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("layers/a.py", "from ..ops.scan import scan\nfrom . import block"),
        ("ops/kernels/a.py", "from ..scan import scan\nfrom ...config import RWKVConfig"),
        ("ops/a.py", "from .keras import keras\nfrom bert4keras_rwkv.keras_loader import ops"),
        ("ops/a.py", "import os\ndef f():\n    return os.environ.get('OPS_KERNEL', '0')"),
    ],
)
def test_a_kept_rule_is_quiet(module, source):
    assert not list(faults_in(source, module))


def loaded_by(*arguments):
    """The heavy modules in `sys.modules` after `python -c ...`, in a fresh process; its output must be empty."""
    report = f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", arguments[0] + report, *arguments[1:]], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


LIGHT = [
    "",
    ".chat",
    ".config",
    ".strategy",
    ".templates",
    ".keras_loader",
    ".tokenizers",
    ".weights",
    ".evaluation",
    ".cli",
]
LIGHT += [".bert4keras3.snippets", ".bert4keras3.tokenizers"]
# A command names the backend, then loads it.
LIGHT += [f".cli.{path.stem}" for path in sorted((PACKAGE / "cli").glob("[a-z]*.py"))]


@pytest.mark.parametrize("name", LIGHT)
def test_import_loads_no_backend_and_prints_nothing(name):
    loaded, printed = loaded_by(f"import bert4keras_rwkv{name}")
    assert loaded == [] and printed == ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["info", "--help"], ["generate", "--help"]])
def test_command_line_answers_without_a_backend(arguments):
    code = (
        "import sys\nfrom bert4keras_rwkv.cli import main\n"
        "sys.argv[0] = 'bert4keras-rwkv'\n"
        "import contextlib\n"
        "with contextlib.suppress(SystemExit):\n    main()"
    )
    loaded, printed = loaded_by(code, *arguments)
    assert loaded == [] and printed


def test_commands_that_compute_nothing_load_no_backend(tmp_path):
    """`info`, `convert`, `data` and `state`, on the shipped model, which is always there."""
    model, texts, state = "finch-jargon", tmp_path / "texts.jsonl", tmp_path / "state.safetensors"
    texts.write_text('{"text": "a hacker"}\n')
    config = RWKVConfig.from_json(PACKAGE / "presets" / model / "config.json")
    RWKVState.zeros(config).save(state)
    for command in (
        ["info", model],
        ["convert", model, tmp_path / "model.pth"],
        ["convert", tmp_path / "model.pth", tmp_path / "again"],
        ["data", texts, tmp_path / "texts.tfrecord", "--tokenizer", model],
        ["state", state, state, "--model", model, "--out", tmp_path / "mean.pth"],
    ):
        code = "import sys\nfrom bert4keras_rwkv.cli import main\ncode = main()\nif code: sys.exit(code)"
        loaded, printed = loaded_by(code, *map(str, command))
        assert loaded == [] and printed, command


def test_import_leaves_keras_backend_alone():
    """Writing KERAS_BACKEND is the user's business."""
    code = "import os; os.environ.pop('KERAS_BACKEND', None); before = dict(os.environ)\n"
    code += "import bert4keras_rwkv\nif dict(os.environ) != before: raise SystemExit('the environment changed')"
    loaded, _ = loaded_by(code)
    assert loaded == []


def of_others_and_private(sources):
    """Private names asked of objects and given to none in `sources`, or asked of `super()`; and all of `keras.src`."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    ours = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    defined = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    ours |= {*defined} | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    asked = {node.attr for node in attributes}
    asked |= {getattr(node.args[1], "value", None) for node in calls if dotted(node.func) == "getattr"}
    above = {node.attr for node in attributes if ast.unparse(node.value) == "super()" and defined.count(node.attr) == 1}
    paths = {dotted(node) or "" for node in attributes}
    inside = {
        path for path in paths if path.startswith("keras.src.") and not any(f"{path}." in other for other in paths)
    }
    return {name for name in (asked - ours) | above if re.match("_[a-z]", str(name))} | inside


def test_private_names_of_other_libraries_are_written_down():
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    table = text.partition("## What other libraries do not document")[2]
    written = re.findall("`([^`]+)`", "".join(re.findall(r"^\|( `.*?)\|", table, re.M)))
    assert sorted(written) == sorted(of_others_and_private((PACKAGE / file).read_text("utf-8") for file in modules()))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a._own = 1\na._own", []),
        ("def _own(): pass\na._own()", []),
        ("a._other", ["_other"]),
        ("getattr(a, '_other', None)", ["_other"]),
        ("def _other(self): super()._other()", ["_other"]),
        ("keras.src.a.b", ["keras.src.a.b"]),
    ],
)
def test_a_private_name_is_seen(source, found):
    assert sorted(of_others_and_private([source])) == found
