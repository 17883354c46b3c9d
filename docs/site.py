"""A hook of mkdocs: README, CONTRIBUTING and SECURITY as pages, pictures from elsewhere, and links that stay inside."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
PICTURES = "benchmarks/results"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for picture in (ROOT / PICTURES).glob("*.png"):
        files.append(File.generated(config, f"{PICTURES}/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = ROOT if page.file.src_path in PAGES.values() else ROOT / "docs"
    return LINK.sub(lambda link: _within(link, folder), markdown)


def _within(link: re.Match[str], folder: Path) -> str:
    """The link as the site knows its target; the text alone where the target is code, which the site does not hold."""
    path, _, heading = link[3].partition("#")
    target = (folder / path).resolve().relative_to(ROOT).as_posix()
    if target in PAGES:
        inside = PAGES[target]
    elif target.startswith("docs/") or (target.startswith(PICTURES) and target.endswith(".png")):
        inside = target.removeprefix("docs/")
    else:
        return link[2]
    return f"{link[1]}[{link[2]}]({inside}{'#' * bool(heading)}{heading})"
