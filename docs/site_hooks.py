"""A hook of mkdocs that adds pages and files from outside docs/ to the site.

Links are written for readers of the repository. Some lead out of docs/: to a recipe, a test, a folder of recorded data.
The site gets a copy of every linked file, below `source/`, so that it is complete.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "readme.md"}
"""Page at the root → where the site has it."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root, the files that pages link to, and a list of files for each linked folder."""
    for source, place in PAGES.items():
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, content=(ROOT / source).read_text("utf-8")))
    for file in files.documentation_pages():
        here = _source(file.src_uri)
        for part in _CODE.split(file.content_string)[::2]:
            for path in {_path(here, link) for link in _LINK.findall(part)}:
                target = _place(path)
                if files.get_file_from_path(target) is not None or not (ROOT / path).exists():
                    continue  # mkdocs itself reports a missing file
                if (ROOT / path).is_dir():
                    files_there = (entry for entry in (ROOT / path).rglob("*") if entry.is_file())
                    names = sorted(entry.relative_to(ROOT / path).as_posix() for entry in files_there)
                    listed = "\n".join(f"- [{name}]({name})" for name in names)
                    files.append(File.generated(config, target, content=f"# {path}\n\n{listed}\n"))
                else:
                    files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Point links that lead out of docs/ to the site's copy."""
    here = _source(page.file.src_uri)
    start = posixpath.dirname(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        return posixpath.relpath(_place(_path(here, link[1])), start or ".")

    parts = _CODE.split(markdown)
    return "".join(part if number % 2 else _LINK.sub(turned, part) for number, part in enumerate(parts))


def _source(place: str) -> str:
    """Where a page of the site lies in the repository."""
    return next((source for source, at in PAGES.items() if at == place), f"docs/{place}")


def _path(here: str, link: str) -> str:
    """What `link` means on the page `here`; both are paths in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))


def _place(path: str) -> str:
    """Where the site has that path."""
    if path in PAGES:
        return PAGES[path]
    inside = path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}"
    return f"{inside}/index.md" if (ROOT / path).is_dir() else inside
