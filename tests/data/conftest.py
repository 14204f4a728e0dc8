"""A small corpus of made-up words, its vocabulary and its shards, shared by the data tests."""

import pathlib
import random

import pytest

from tfrecords import build, vocabulary

SEQ_LENGTHS = (32, 64)
NUM_SHARDS = 4


def write_corpus(folder: pathlib.Path, num_documents: int, seed: int = 1) -> None:
    """Documents of sentences whose first word names the document, so that tests can trace it."""
    draw = random.Random(seed)
    syllables = ["ka", "lo", "mi", "ne", "ru", "sta", "ven", "dor", "pi", "qua"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(300)]
    documents = []
    for number in range(num_documents):
        sentences = [
            " ".join([f"doc{number}", *draw.choices(words, k=draw.randint(3, 14))]) + "."
            for _ in range(draw.randint(2, 14))
        ]
        documents.append("\n".join(sentences))
    (folder / "a").mkdir(parents=True)
    half = num_documents // 2
    (folder / "a" / "one.txt").write_text("\n\n".join(documents[:half]) + "\n")
    (folder / "two.txt").write_text("\ufeff" + "\r\n\r\n".join(documents[half:]), newline="")


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 120)
    return folder


@pytest.fixture(scope="session")
def vocab_file(corpus_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    arguments = ["--input", f"{corpus_dir}/a/*.txt,{corpus_dir}/two.txt", "--vocab_size", "250"]
    assert vocabulary.main([*arguments, "--output", str(path)]) == 0
    return path


def build_arguments(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, output_dir: pathlib.Path
) -> list[str]:
    flags = {
        "input": f"{corpus_dir}/a/*.txt,{corpus_dir}/two.txt",
        "vocab_file": vocab_file,
        "output_dir": output_dir,
        "seq_lengths": ",".join(map(str, SEQ_LENGTHS)),
        "num_shards": NUM_SHARDS,
        "dupe_factor": 3,
        "seed": 7,
        "eval_fraction": 0.1,
        "num_processes": 1,
        # Several buckets even for so little text.
        "bucket_bytes": 20_000,
    }
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.fixture(scope="session")
def shards(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("built") / "shards"
    assert build.main(build_arguments(corpus_dir, vocab_file, folder)) == 0
    return folder


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with two shards made by hand in `in`, a vocabulary and nothing else."""
    # It imports tests, which import from here.
    from tests.data import hand_made

    hand_made.fill(tmp_path)
    return tmp_path
