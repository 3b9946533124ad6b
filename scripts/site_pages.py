"""Hooks of mkdocs: the site has the pages of the repository's root too, and its links work in both places.

A page links to others by their paths in the repository, so that it can be read there. README.md becomes the first page
of the site. A link to a file that the site doesn't have, such as a test, becomes plain text, once it is known to exist.
"""
# ruff: noqa: INP001 - scripts are not a package

from __future__ import annotations

import os.path
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File in the repository -> its page on the site."""
_FILE_OF_PAGE = {page: file for file, page in ROOT_PAGES.items()}

_FENCE_OR_LINK = re.compile(
    r"^ *```.*?^ *```$|(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)]*)?\)",
    re.DOTALL | re.MULTILINE,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root."""
    for file, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - by name
    """Turn links between files of the repository into links between pages of the site."""
    return relink(markdown, page.file.src_uri)


def relink(markdown: str, page: str) -> str:
    """Return the text of a page with links that work on the site.

    Args:
        markdown: Its text, with links that work in the repository.
        page: Path of the page on the site.

    Raises:
        PluginError: A link leads to a file that does not exist.
    """
    folder = PurePosixPath(_FILE_OF_PAGE.get(page, f"docs/{page}")).parent

    def replaced(found: re.Match[str]) -> str:
        if found["path"] is None:
            return found[0]
        file = os.path.normpath(folder / found["path"])
        if not (ROOT / file).exists():
            message = f"{folder}: {found[0]} leads to {file}, which does not exist"
            raise PluginError(message)
        target = ROOT_PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if target is None:
            return found["text"]
        path = os.path.relpath(target, PurePosixPath(page).parent)
        return f"{found['mark']}[{found['text']}]({path}{found['anchor'] or ''})"

    return _FENCE_OR_LINK.sub(replaced, markdown)
