"""What the documentation site shows of a docstring: an extension of griffe, which reads the source for mkdocstrings."""

import re

import griffe
from site_api import as_list  # loaded already, by the hooks in site_pages.py


class Docstrings(griffe.Extension):
    """Arguments as lists, and the comment behind a constant as its docstring."""

    def on_package(self, *, pkg, **_):
        self._visit(pkg)

    def _visit(self, thing):
        for member in list(thing.members.values()):
            if member.is_alias:
                continue
            if member.is_class or member.is_function:
                self._rewrite(member)
            elif member.is_attribute and not member.docstring and member.lines:
                _, has_comment, comment = member.lines[-1].partition("  # ")
                if has_comment and thing.is_module:
                    member.docstring = griffe.Docstring(comment, parent=member)
            self._visit(member)

    def _rewrite(self, member):
        """Its docstring with a list of what its arguments are, of a class its fields too."""
        if not member.docstring:
            return
        names = {parameter.name for parameter in member.parameters}
        if member.is_class:
            names |= {name for name, field in member.members.items() if not field.is_function}
            names |= set(re.findall(r"\bself\.([a-z]\w*)", member.source))
        member.docstring.value = as_list(member.docstring.value, names)
