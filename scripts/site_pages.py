"""Hooks of the documentation site, which mkdocs.yml names: pages that are made, links, and two languages.

A file has its place in the checkout, where links of the documents lead on GitHub, and its page on the site; PAGES
says which. English pages lie in docs, Chinese ones in docs/zh under the same names. The navigation in mkdocs.yml is
that of the English pages; the Chinese one is made from it, and leads to the English page where there is no other.
"""

import json
import logging
import posixpath
import re
from pathlib import Path

import site_api
from mkdocs.structure.files import File
from mkdocs.structure.nav import Link, Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "README.zh-CN.md": "zh/index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "bert4keras_rwkv/presets/finch-jargon/README.md": "shipped-model.md",
    "LICENSE": "LICENSE.txt",
}
NOTEBOOKS = {f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
PAGES = OUTSIDE | NOTEBOOKS
SOURCES = {page: source for source, page in PAGES.items()}
LANGUAGES = {"en": "English", "zh": "中文"}
TITLES = {"Home": "首页", "Guides": "指南", "Notebooks": "教程（notebook）", "Reference": "参考", "Project": "项目"}
TARGET = re.compile(r"\]\(([^()#\s:]+)(#[^()\s]*)?\)")

navigations = {}


def on_config(config):
    """The pages of the folders in the navigation, which are made."""
    logging.getLogger("jieba").setLevel(logging.WARNING)
    made = {
        "api/": [f"api/{page}.md" for page in ("index", *site_api.PAGES)],
        "notebooks/": sorted(NOTEBOOKS.values()),
    }
    for part in config.nav:
        for title, value in part.items():
            part[title] = made[value] if isinstance(value, str) and value in made else value


def on_files(files, config):
    """Add the pages that do not lie in docs."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=_notebook(text) if source in NOTEBOOKS else text))
    for name, text in site_api.pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def _notebook(text):
    """An executed notebook as Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += filter(None, map(_output, cell.get("outputs", ())))
    return "\n\n".join(parts) + "\n"


def _output(output):
    """What a cell wrote or drew."""
    shown = output.get("data", {})
    if "image/png" in shown:
        picture = "".join("".join(shown["image/png"]).split())
        return f'<img alt="" src="data:image/png;base64,{picture}">'
    text = "".join(output.get("text", shown.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""


def on_page_markdown(markdown, page, config, files):
    """Links to files of the checkout as links to their pages."""
    here = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(here, f"docs/{here}"))

    def link(found):
        target = posixpath.normpath(posixpath.join(folder, found[1]))
        page = PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if page is None:
            return found[0]  # the check of links will say that it leads nowhere
        return f"]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{found[2] or ''})"

    return markdown if here.startswith("api/") else TARGET.sub(link, markdown)


def on_nav(nav, config, files):
    navigations["en"] = nav


def on_env(env, config, files):
    """The Chinese navigation. All pages have been read by now, and have titles."""
    items = [_chinese(item, files) for item in navigations["en"].items]
    navigations["zh"] = Navigation(
        items, [file.page for file in files.documentation_pages() if _language(file) == "zh"]
    )
    navigations["zh"].homepage = files.get_file_from_path("zh/index.md").page


def _chinese(item, files):
    """A Chinese page or section for an English one; where there is no such page, a link to the English one."""
    if isinstance(item, Section):
        section = Section(TITLES.get(item.title, item.title), [_chinese(child, files) for child in item.children])
        for child in section.children:
            child.parent = section
        return section
    if not isinstance(item, Page):
        return item
    file = files.get_file_from_path(f"zh/{item.file.src_uri}")
    if file is None:
        return Link(f"{item.title}（英文）", item.url)
    if item.title in TITLES:
        file.page.title = TITLES[item.title]
    return file.page


def _language(file):
    return "zh" if file.src_uri.startswith("zh/") else "en"


def on_page_context(context, page, config, nav):
    """The page in its language: the words of the theme, the navigation, and where the other language is."""
    language = _language(page.file)
    files = {file.src_uri: file for file in context["pages"]}
    config.theme["language"] = language
    plain = page.file.src_uri.removeprefix("zh/")
    there = {"en": files.get(plain), "zh": files.get(f"zh/{plain}") or files["zh/index.md"]}
    config.extra["alternate"] = [
        {"name": name, "lang": code, "link": there[code].url} for code, name in LANGUAGES.items()
    ]
    context["nav"] = navigations[language]
    return context
