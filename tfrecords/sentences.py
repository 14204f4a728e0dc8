"""Paragraphs to sentences, with Wikimedia's sentencex: rules and lists of abbreviations, no model.

Its version is part of a build's identity, since another one may cut elsewhere.
"""

import importlib.metadata
import re

import sentencex

SEGMENTER = f"sentencex {importlib.metadata.version('sentencex')}"

_LANGUAGE = "en"
# sentencex never cuts inside a quotation, however long the speech, so it sees none: quotation
# marks are spaces to it, but not the apostrophe inside a word.
_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"
_QUOTE = re.compile(
    "[\"\u201c\u201d\u201e\u00ab\u00bb]|(?<!\\w)['`\u2018\u2019]|['`\u2018\u2019](?!\\w)"
)


def split(paragraph: str) -> list[str]:
    """The sentences of a paragraph, none of them empty.

    Runs of white space become one space, as in any tokenizer; no other character is lost.

    Example:
        >>> split("Mr. Smith paid $3.50.  \u201cDid he? Why?\u201d he did ask.")
        ['Mr. Smith paid $3.50.', '\u201cDid he?', 'Why?\u201d he did ask.']
    """
    # sentencex panics on a no-break space before a full stop; there are plain spaces only.
    text = " ".join(paragraph.split())
    sentences = []
    begin = end = 0
    for piece in sentencex.segment(_LANGUAGE, _QUOTE.sub(" ", text)):
        end += len(piece)
        if text[end : end + 1].islower():
            continue  # \u201cWhy!\u201d he said.
        cut = _before_opening_quotes(text, begin, end) if end < len(text) else end
        if sentence := text[begin:cut].strip():
            sentences.append(sentence)
        begin = cut
    return sentences


def _before_opening_quotes(text: str, begin: int, end: int) -> int:
    """Where the sentence before `end` ends if quotation marks after a space open the next one."""
    kept = text[begin:end].rstrip().rstrip(_QUOTES)
    return begin + len(kept) if kept.endswith(" ") else end
