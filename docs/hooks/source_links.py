"""What pages refer to outside of docs/.

The site holds the explanation of the benchmarks and their pictures too. Links to other files lead
to the repository where mkdocs.yml has a `repo_url`; without one they become the file's name.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[2]
_DOCS = "docs/"
_BORROWED = ("benchmarks/README.md", "benchmarks/results/*.png")
_LINK = re.compile(r"(!?)\[([^\[\]]+)\]\(([^)#:\s]+)(#[^)]+)?\)")


def borrowed() -> list[str]:
    """Paths in the tree of what the site holds beside docs/, the same on the site."""
    paths = (path for pattern in _BORROWED for path in sorted(ROOT.glob(pattern)))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def rewritten(markdown: str, page: str, repo_url: str | None) -> str:
    """A page's text with its links out of docs/ replaced.

    Args:
        markdown: the text.
        page: the page's path on the site, such as `reference/tf_lans.md`.
        repo_url: where the repository can be read, if anywhere.

    Example:
        >>> rewritten("[how](../tfrecords/reader.py) it is [read](scale.md)", "data.md", None)
        'how (`tfrecords/reader.py`) it is [read](scale.md)'
        >>> rewritten("[how](../tfrecords/reader.py)", "data.md", "https://example.org/us/it")
        '[how](https://example.org/us/it/blob/HEAD/tfrecords/reader.py)'
        >>> rewritten("[how](../README.md#here)", "benchmarks/README.md", None)
        'how (`README.md`)'
        >>> rewritten("[how](../docs/scale.md#here)", "benchmarks/README.md", None)
        '[how](../scale.md#here)'
    """
    here = page if page in borrowed() else _DOCS + page

    def replace(link: re.Match[str]) -> str:
        bang, label, target, anchor = link.groups(default="")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if path.startswith(_DOCS) or path in borrowed():
            there = posixpath.relpath(path.removeprefix(_DOCS), posixpath.dirname(page) or ".")
            return f"{bang}[{label}]({there}{anchor})"
        if repo_url:
            return f"{bang}[{label}]({repo_url.rstrip('/')}/blob/HEAD/{path}{anchor})"
        return f"`{path}`" if label.strip("`") in path else f"{label} (`{path}`)"

    return _LINK.sub(replace, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs calls this with what it found in docs/."""
    for path in borrowed():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """MkDocs calls this with each page's text before it becomes HTML."""
    return rewritten(markdown, page.file.src_uri, config.repo_url)
