"""The flags of every command that reads text."""

from absl import flags

from tfrecords import document_formats
from tfrecords.document_formats import TextFormat


def define(flag_values: flags.FlagValues) -> None:
    """Adds --document_boundary and --text_field to a command's flags."""
    flags.DEFINE_enum(
        "document_boundary", document_formats.BLANK_LINE, document_formats.BOUNDARIES,
        "What ends a document: a blank line, the end of its file, or </doc> after <doc ...>, as "
        "WikiExtractor writes them.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string(
        "text_field", "", "The text is JSON lines, each a document: the field that holds it, such "
        "as 'text'. By default it is plain text.",
        flag_values=flag_values,
    )  # fmt: skip


def text_format(flag_values: flags.FlagValues, split_sentences: bool = False) -> TextFormat:
    """The format that the flags say.

    Raises:
        UserError: they exclude each other.
    """
    return TextFormat(
        document_boundary=flag_values.document_boundary,
        text_field=flag_values.text_field,
        split_sentences=split_sentences,
    )
