"""The examples as modules, and the shards of real text that tests give them."""

import importlib.util
import pathlib
import pydoc_data.topics
import types

import tensorflow as tf

import tfrecords
import tfrecords.build
import tfrecords.vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
LENGTH, BATCH = 32, 64


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_shards(root: pathlib.Path) -> pathlib.Path:
    """CPython's language reference, masked when it is read."""
    topics = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    lines = [line.strip() for line in topics.split("\n") if line.strip()]
    documents = ["\n".join(lines[start : start + 15]) for start in range(0, len(lines), 15)]
    text, vocabulary, folder = root / "text.txt", root / "vocab.txt", root / "shards"
    text.write_text("\n\n".join(documents), encoding="utf-8")
    assert not tfrecords.vocabulary.main(
        [f"--input={text}", "--vocab_size=1024", f"--output={vocabulary}"]
    )
    options = {
        "input": text,
        "vocab_file": vocabulary,
        "output_dir": folder,
        "seq_lengths": LENGTH,
        "records": "dynamic",
        "num_shards": 4,
        "num_processes": 1,
        "eval_fraction": 0.1,
    }
    assert not tfrecords.build.main([f"--{name}={value}" for name, value in options.items()])
    return folder


def read(shards: pathlib.Path, split: str, **options: object) -> tf.data.Dataset:
    options = {"seq_length": LENGTH, "global_batch_size": BATCH, **options}
    return tfrecords.read(shards, split=split, features="keras_hub", **options)
