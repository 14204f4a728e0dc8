"""A vocabulary and its casing in the files that Hugging Face's tokenizers read, and back."""

import json
import os
from typing import Any

import tensorflow as tf
import tokenizers

from official_bert.export import incoming, json_object
from tfrecords import files, schema, tokenization
from tfrecords.errors import UserError
from tfrecords.vocabulary import (
    CLS,
    CONTINUATION,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNKNOWN,
    Vocabulary,
)

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
MODEL_CONFIG = "config.json"
_CLASS = "tokenizer_class"

# Those that cut text as BERT does, and those that leave it to tokenizer.json; without "Fast".
_CLASSES = (
    "BertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "MobileBertTokenizer",
)
_GENERIC_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")

_ROLES = {
    "unk_token": UNKNOWN,
    "sep_token": SEP,
    "pad_token": PAD,
    "cls_token": CLS,
    "mask_token": MASK,
}


def write(vocabulary: Vocabulary, lower_case: bool, max_length: int, folder: str) -> None:
    """Writes `vocab.txt`, `tokenizer.json` and what goes with them.

    Args:
        vocabulary: the word pieces.
        lower_case: whether text is lower-cased, and loses its accents.
        max_length: word pieces that the model has positions for.
        folder: an existing folder.
    """
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lower_case,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **_ROLES,
    }
    tokenizer = build(vocabulary, lower_case)
    contents = {
        schema.VOCABULARY_FILE: vocabulary.content,
        TOKENIZER: tokenizer.to_str(pretty=True).encode("utf-8"),
        CONFIG: _json(config),
        SPECIAL: _json(_ROLES),
    }
    for name, content in contents.items():
        files.write_bytes(os.path.join(folder, name), content)


def build(vocabulary: Vocabulary, lower_case: bool) -> tokenizers.Tokenizer:
    """The tokenizer of a vocabulary, for single texts and pairs.

    It gives the ids of `tfrecords.tokenization.Tokenizer` but for what is Hugging Face's own. A
    special token spelled out in the text, such as `[SEP]`, becomes its id. A capital sigma at the
    end of a word is lower-cased as one inside it. Private-use characters are dropped. And its
    tables are of another Unicode version than Python's: a few hundred marks, punctuation signs,
    format characters and ideographs that one of them knows and the other does not.

    Example:
        >>> build(vocabulary, lower_case=True).encode("Hello", "there").type_ids
        [0, 0, 0, 1, 1]
    """
    ids = vocabulary.ids
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            vocab=ids,
            unk_token=UNKNOWN,
            continuing_subword_prefix=CONTINUATION,
            max_input_chars_per_word=tokenization.MAX_WORD,
        )
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lower_case
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{CLS}:0 $A:0 {SEP}:0",
        pair=f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1",
        special_tokens=[(CLS, ids[CLS]), (SEP, ids[SEP])],
    )
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix=CONTINUATION)
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def read(folder: str, vocab_file: str = "") -> tuple[Vocabulary, bool, tuple[str, ...]]:
    """The vocabulary of a folder, its casing, and what differs from BERT's own tokenization.

    Args:
        folder: holds `vocab.txt`, or a `tokenizer.json` with a WordPiece vocabulary.
        vocab_file: the vocabulary; empty: the folder's own.

    Raises:
        UserError: no vocabulary, or one that is no WordPiece's.
    """
    described = json_object.read(os.path.join(folder, TOKENIZER))
    vocabulary = Vocabulary.load(vocab_file) if vocab_file else _vocabulary(folder, described)
    config = json_object.read(os.path.join(folder, CONFIG))
    _check_class(folder, config, described)
    normalizer = described.get("normalizer") or {}
    lower_case = config.get("do_lower_case", normalizer.get("lowercase"))
    if lower_case is None:
        lower_case = not vocabulary.capitalized
    strip_accents = config.get("strip_accents", normalizer.get("strip_accents"))
    warnings = []
    if strip_accents is not None and strip_accents != lower_case:
        warnings.append(
            f"its tokenizer has strip_accents {strip_accents} with do_lower_case {lower_case}; "
            "here accents go with capitals, so text with accents is cut otherwise"
        )
    if not config.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)):
        warnings.append(
            "its tokenizer has tokenize_chinese_chars False; here each Chinese character is a word "
            "of its own, so text with them is cut otherwise"
        )
    return vocabulary, bool(lower_case), tuple(warnings)


def _check_class(folder: str, config: dict[str, Any], described: dict[str, Any]) -> None:
    """Refuses text that is cut by other rules than BERT's before word pieces are looked up."""
    # Where transformers looks, in its order.
    places = {CONFIG: config, MODEL_CONFIG: json_object.read(os.path.join(folder, MODEL_CONFIG))}
    named = [(path, found[_CLASS]) for path, found in places.items() if _CLASS in found]
    path, given = named[0] if named else (CONFIG, _CLASSES[0])
    name = given.removesuffix("Fast")
    kind = (described.get("model") or {}).get("type")
    if name in _CLASSES or (name in _GENERIC_CLASSES and kind == "WordPiece"):
        return
    raise UserError(
        f"{folder}/{path} has {_CLASS} {given}; expected {_CLASSES[0]}: text is cut here by BERT's "
        "own rules only; choose another model"
    )


def _vocabulary(folder: str, described: dict[str, Any]) -> Vocabulary:
    path = os.path.join(folder, schema.VOCABULARY_FILE)
    if tf.io.gfile.exists(path):
        return Vocabulary.load(path)
    model = described.get("model") or {}
    if not model:
        raise UserError(
            f"{folder} holds neither {schema.VOCABULARY_FILE} nor {TOKENIZER}; fetch one of them, "
            "or give --vocab_file"
        )
    if model.get("type") != "WordPiece":
        raise UserError(
            f"{folder}/{TOKENIZER} is a {model.get('type')} tokenizer; expected WordPiece, BERT's"
        )
    ids = dict(model["vocab"])
    tokens = tuple(sorted(ids, key=ids.__getitem__))
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise UserError(f"the ids of {folder}/{TOKENIZER} have gaps; give --vocab_file")
    return incoming.of_tokens(tokens, f"{folder}/{TOKENIZER}")


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode("utf-8")
