# SPDX-License-Identifier: Apache-2.0
"""Hook of mkdocs.yml: pages made of the code and of files outside docs, and links between them.

The documents link to each other as on a code host. In the site, links to files that are no page of
it become plain text.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # files outside docs that are pages
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.rst": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
GENERATED = {  # page: argument of pcseg_core.cli.reference
    "reference/cli.md": "commands",
    "reference/recipes.md": "recipes",
    "reference/python.md": "python",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Add the pages that mkdocs.yml does not name to the how-to pages."""
    named = set(re.findall(r"'([\w/-]+\.md)'", str(config["nav"])))
    how_to = next(section["How-to"] for section in config["nav"] if "How-to" in section)
    docs = Path(config["docs_dir"])
    found = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    how_to += sorted(found - named)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files of docs, and the pictures that they show."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for picture in (ROOT / "benchmarks").glob("results/*.png"):
        uri = f"results/{picture.name}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    for page, argument in GENERATED.items():
        command = [sys.executable, "-m", "pcseg_core.cli.reference", argument]
        made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        files.append(File.generated(config, page, content=made.stdout))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """The text of a page with links to pages of the site."""
    uri = page.file.src_uri
    origin = next((source for source, name in PAGES.items() if name == uri), f"docs/{uri}")
    if origin.endswith(".rst"):
        markdown = from_rst(markdown)

    def replaced(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups(default="")
        if not target or re.match(r"\w+:", target):
            return match.group()
        found = page_of(normpath(str(PurePosixPath(origin).parent / target)))
        if found is None or files.get_file_from_path(found) is None:
            return "" if image else text  # a file of the repository
        return f"{image}[{text}]({relpath(found, PurePosixPath(uri).parent)}{anchor})"

    blocks = re.split(r"(^ *```.*?^ *```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(b if i % 2 else LINK.sub(replaced, b) for i, b in enumerate(blocks))


def page_of(path: str) -> str | None:
    """Path in the site of a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("benchmarks/results/"):
        return path.removeprefix("benchmarks/")
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def from_rst(text: str) -> str:
    """The changelog in Markdown."""
    text = re.sub(r"^(.+)\n=+$", r"# \1", text, flags=re.MULTILINE)
    text = re.sub(r"^(.+)\n-+$", r"## \1", text, flags=re.MULTILINE)
    return re.sub(r"^(\w+)\n\n(?=\*)", r"### \1\n\n", text.replace("``", "`"), flags=re.MULTILINE)
