"""Puts each command's docstring and flags in place of `<!-- command: its.module -->`."""

import functools
import itertools
import json
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mkdocs.exceptions import PluginError

_PACKAGES = ("tf_lans", "tfrecords", "official_bert")
_MARKER = re.compile(r"<!-- command: ([\w.]+) -->")
_OPTION = re.compile(r"(?<![\w`/-])--\w+(?:=\S*\w)?(?!`)")


@functools.cache
def commands() -> Mapping[str, Mapping[str, Any]]:
    """What `command_flags.py` prints, in a process of its own for the sake of its stand-ins."""
    script = pathlib.Path(__file__).with_name("command_flags.py")
    command_line = [sys.executable, str(script), *_PACKAGES]
    return json.loads(subprocess.run(command_line, check=True, stdout=subprocess.PIPE).stdout)


def as_markdown(doc: str) -> str:
    r"""A module's docstring as Markdown: its indented blocks become fenced ones.

    Example:
        >>> print(as_markdown("Builds, or with --gzip packs::\n\n  python -m tfrecords.build"))
        Builds, or with `--gzip` packs:
        <BLANKLINE>
        ```sh
        python -m tfrecords.build
        ```
    """
    parts = []
    blocks = doc.strip().split("\n\n")
    for is_code, group in itertools.groupby(blocks, lambda block: block.startswith(" ")):
        text = textwrap.dedent("\n\n".join(group)).strip("\n")
        if is_code:
            language = "sh" if "python -m" in text else "text"
            parts.append(f"```{language}\n{text}\n```")
        else:
            parts.append(_OPTION.sub(r"`\g<0>`", re.sub(r"::(?=\n\n|$)", ":", text)))
    return "\n\n".join(parts)


def flag_table(flags: Sequence[Mapping[str, Any]]) -> str:
    """A table of flags: how each is typed, its default, what it does."""
    rows = ["| flag | default | |", "| --- | --- | --- |"]
    for flag in flags:
        name = f"`--[no]{flag['name']}`" if flag["boolean"] else f"`--{flag['name']}`"
        default = "required" if flag["required"] else ""
        if flag["default"]:
            default = f"`{flag['default']}`"
        words = flag["help"].removeprefix(f"<{'|'.join(flag['choices'])}>: ")
        words = _OPTION.sub(r"`\g<0>`", words).removesuffix(
            "; repeat this option to specify a list of values"
        )
        if flag["choices"]:
            words += " One of " + ", ".join(f"`{choice}`" for choice in flag["choices"]) + "."
        if flag["multiple"]:
            words += " May be given several times."
        rows.append(f"| {name} | {default} | {_cell(words)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def section(command: str) -> str:
    """What the site says of one command.

    Raises:
        PluginError: there is no such command.
    """
    if command not in commands():
        raise PluginError(f"{command} is no command; expected one of {', '.join(commands())}")
    found = commands()[command]
    return f"{as_markdown(found['doc'])}\n\n{flag_table(found['flags'])}\n"


def on_page_markdown(markdown: str, **_: object) -> str:
    """MkDocs calls this with each page's text before it becomes HTML."""
    return _MARKER.sub(lambda marker: section(marker.group(1)), markdown)
