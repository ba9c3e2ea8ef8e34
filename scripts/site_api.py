"""The API pages of the documentation site: which public names there are, and on which page each stands.

The names are read from the source without importing it: the tables of `public_names`, the lists `__all__`, and the
names in NAMED, which the documents use by their module. A name in a table or list has a page without
anything done here.
"""

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

PACKAGE = "bert4keras_rwkv"
ROOT = Path(__file__).resolve().parent.parent
# What stands on a page, by the module in which it is defined; of several that fit the longest.
PAGES = {
    "models": ("Models", ("models", "strategy")),
    "writing": ("Writing text", ("session", "chat", "models.stream", "generation", "tokenizers", "templates")),
    "state": ("Config and state", ("config", "state")),
    "layers": ("Layers and losses", ("layers",)),
    "data": ("Data", ("data", "training.datasets", "training.tf_data")),
    "training": ("Training", ("training",)),
    "evaluation": ("Evaluation", ("evaluation",)),
    "weights": ("Weights", ("weights",)),
    "versions": ("Versions", ("versions",)),
    "kernels": ("Native kernels", ("ops",)),
    "packing": ("Packed matrices", ("packing",)),
    "bert4keras3": ("bert4keras3", ("bert4keras3",)),
}
# Public names of modules that have no list of them.
NAMED = {
    "data.convert": ("convert", "open_documents", "read_documents"),
    "evaluation.lm_eval_model": ("RWKVForLMEval",),
    "layers.start_state": ("StartState",),
    "models.stream": ("Stream",),
    "ops.kernels.on_jax": ("export_checks", "register"),
    "session": ("Place", "SessionStream"),
    "strategy": ("Part", "Place"),
    "training.distil": ("Distilled", "distil_prompt"),
    "training.learning_rates": ("FULL", "LORA", "PROMPT", "STATE", "STATE_AND_LORA", "STATE_AND_SHIFTS"),
    "training.metrics": ("BitsPerByte", "Perplexity", "TokenAccuracy", "Tokens"),
    "training.folder": ("Folder",),
    "training.plan": ("TrainingPlan", "Tuning", "packed", "packed_held_out"),
    "training.pretrain": ("train",),
    "training.tune": ("Tuned", "tune"),
    "versions": ("version_named", "version_of", "versions"),
    "versions.version": ("Version",),
    "weights.adapters": ("Adapter", "read_adapter"),
    "weights.checkpoint": ("Origin",),
    "weights.summary": ("Summary", "summarise"),
}


class Entry(NamedTuple):
    """A public name. public: from where one imports it. module: where it is defined, and as `name`."""

    public: str
    module: str
    name: str

    @property
    def page(self):
        """The name of its page. Raises ValueError if it belongs to none."""
        room = self.module.removeprefix(f"{PACKAGE}.")
        rooms = {part: page for page, (_, parts) in PAGES.items() for part in parts}
        found = max((part for part in rooms if f"{room}.".startswith(f"{part}.")), key=len, default=None)
        if found is None:
            raise ValueError(f"No page of PAGES is for `{self.public}`, which is defined in {self.module}.")
        return rooms[found]

    @property
    def path(self):
        return f"{self.module}.{self.name}"


def file_of(module):
    """The file of a module of the package, or None."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@functools.cache
def source(module):
    """(tree of a module of the package, whether it is a package), or None."""
    file = file_of(module)
    return file and (ast.parse(file.read_text("utf-8")), file.name == "__init__.py")


def modules():
    """The modules of the package, packages before what is in them, those that only repeat names last."""
    files = (ROOT / PACKAGE).rglob("*.py")
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files)
    return sorted(names, key=lambda name: (".bert4keras3" in name, name.count("."), name))


def listed(module):
    """{public name: module it is imported from} of the list or table of a package, or of a module of bert4keras3."""
    tree, is_package = source(module)
    found = {}
    if not is_package and ".bert4keras3." not in module:
        return found
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.Call) and getattr(value.func, "id", None) == "public_names":
            table = ast.literal_eval(value.args[1])
            found |= {name: absolute(module, True, *dots(where)) for name, where in table.items()}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            texts = [e.value for e in ast.walk(value) if isinstance(e, ast.Constant) and isinstance(e.value, str)]
            found |= dict.fromkeys(texts, module)
    return found


def dots(where):
    """'..data.records' as (2, 'data.records')."""
    name = where.lstrip(".")
    return len(where) - len(name), name


def absolute(module, is_package, level, name):
    """The module that an import statement in `module` names."""
    if not level:
        return name
    parts = module.split(".")
    return ".".join([*parts[: len(parts) - level + is_package], *filter(None, [name])])


def defined(module, name):
    """(module, name) where a name of the package is defined; None for what comes from elsewhere, or is a module."""
    tree, is_package = source(module) or (None, None)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, name
        if isinstance(node, ast.Assign) and name in [getattr(target, "id", None) for target in node.targets]:
            return (module, name) if isinstance(node.value, ast.Constant) else None
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                where = absolute(module, is_package, node.level, node.module)
                if (alias.asname or alias.name) == name and source(f"{where}.{alias.name}") is None:
                    return defined(where, alias.name)
    return None


def entries():
    """Every public name once: by the shortest path that it has, in the order of the pages and of their modules."""
    found = {}
    for module in modules():
        short = module.removeprefix(f"{PACKAGE}.")
        names = listed(module) | dict.fromkeys(NAMED.get(short, ()), module)
        for name, where in names.items():
            place = defined(where, name)
            if place is not None:
                found.setdefault(place, Entry(f"{module}.{name}", *place))
            elif short in NAMED and name in NAMED[short]:
                raise ValueError(f"{module} has no `{name}`, which NAMED has.")
    order = list(PAGES)
    return sorted(found.values(), key=lambda e: (order.index(e.page), e.public.count("."), e.module))


def first_sentence(entry):
    """What a name is, in a sentence; of a constant its comment."""
    tree, _ = source(entry.module)
    for node in tree.body:
        if getattr(node, "name", None) == entry.name:
            text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            return re.match(r".*?(?:\.(?= [A-Z`])|$)", text)[0]
        if isinstance(node, ast.Assign) and entry.name in [getattr(target, "id", None) for target in node.targets]:
            line = file_of(entry.module).read_text("utf-8").splitlines()[node.end_lineno - 1]
            return line.partition("  # ")[2]
    return ""


def pages():
    """{name of a page: its Markdown}, the index first."""
    found = entries()
    rows = ["# API", "", "All public names, by the place from which they are imported.", ""]
    result = {"index": ""}
    for page, (title, _) in PAGES.items():
        mine = [entry for entry in found if entry.page == page]
        rows += [f"## {title}", "", "| name | what it is |", "| --- | --- |"]
        rows += [f"| [`{e.public}`]({page}.md#{e.path}) | {cell(first_sentence(e))} |" for e in mine]
        rows += [""]
        blocks = (f'::: {e.path}\n    options:\n      heading: "{e.public}"\n      toc_label: {e.name}\n' for e in mine)
        result[page] = "\n".join([f"# {title}", "", *blocks])
    return {**result, "index": "\n".join(rows)}


def cell(text):
    return text.replace("|", "\\|")


def as_list(text, names):
    """A docstring with its lines `name: what it is` as a list, in which a reader finds a name.

    names: those that are arguments or fields. A sentence that begins with some of them, perhaps with a shape or type
    behind, and a colon, begins an item. What begins with 'Returns' stands apart.
    """
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"
    item = re.compile(
        rf"(?:^|(?<=[.)] )|(?<=\.\n))((?:{name})(?:, (?:{name}))*)((?: \([^:\n]*\))?(?: int| bool| float)?)(?=:\s)"
    )
    return "\n\n".join(_items(part, item) for part in text.split("\n\n"))


def _items(part, item):
    """A paragraph as a list of its items."""
    if part.startswith(" ") or part.startswith("Raises:"):
        return part
    flat = " ".join(part.split())
    starts = [found.start() for found in item.finditer(flat)]
    if not starts:
        return part
    pieces = [flat[a:b].strip() for a, b in zip([0, *starts], [*starts, None], strict=True)]
    lines = [] if not pieces[0] else [pieces[0], ""]
    for piece in pieces[1:]:
        piece, returns, more = piece.partition(" Returns ")
        lines.append(item.sub(r"- **`\1`**\2", piece, count=1))
        if returns:
            lines += ["", returns.strip() + " " + more, ""]
    return "\n".join(lines).strip()
