"""Reads our docstrings as the site's parser wants them: `Example:` is a section of code."""

import re

import griffe


class Sections(griffe.Extension):
    """Renames sections and ends of paragraphs that the parser knows by other names."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Griffe calls this with each object it has read."""
        if obj.docstring:
            text = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", obj.docstring.value)
            obj.docstring.value = re.sub(r"(?m)::$", ":", text)
