"""Other packages' way from text to pretraining data, each run in a process of its own.

    python -m benchmarks.data_peers google CHECKOUT --input_file=... --output_file=...
    python -m benchmarks.data_peers huggingface TEXT VOCABULARY OUTPUT_DIR PROCESSES LENGTHS
    python -m benchmarks.data_peers lddl TEXT VOCABULARY OUTPUT_DIR PROCESSES LENGTH

Started by `benchmarks.data`, also under the Python of another environment.
"""

from __future__ import annotations

import itertools
import os
import runpy
import sys
import types
from collections.abc import Callable


def google(checkout: str, *flags: str) -> None:
    """Runs a checkout's create_pretraining_data.py as it is, on TensorFlow 2's version 1 names."""
    import tensorflow as tf

    script = os.path.join(checkout, "create_pretraining_data.py")
    sys.modules["tensorflow"] = tf.compat.v1
    sys.path.insert(0, checkout)
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")


def huggingface(
    text: str, vocab_file: str, output_dir: str, processes: str, seq_lengths: str
) -> None:
    """Tokenises once and groups to rows of each length, as the masked-LM examples do.

    Rows are left unmasked, for a collator that masks them in training; there are no pairs of
    segments and no next-sentence labels.
    """
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    datasets.disable_caching()
    num_proc = int(processes) if int(processes) > 1 else None
    tokenizer = tokenizers.BertWordPieceTokenizer(vocab_file, lowercase=True)
    if num_proc:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ends = [tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")]

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encodings = tokenizer.encode_batch(batch["text"], add_special_tokens=False)
        return {"input_ids": [encoding.ids for encoding in encodings]}

    def group(batch: dict[str, list[list[int]]], room: int) -> dict[str, list[list[int]]]:
        ids = list(itertools.chain.from_iterable(batch["input_ids"]))
        rows = (ids[begin : begin + room] for begin in range(0, len(ids) - room + 1, room))
        return {"input_ids": [[ends[0], *row, ends[1]] for row in rows]}

    cache = os.path.join(output_dir, "cache")
    lines = datasets.load_dataset("text", data_files=text, split="train", cache_dir=cache)
    tokenized = lines.map(tokenize, batched=True, num_proc=num_proc, remove_columns=["text"])
    for length in map(int, seq_lengths.split(",")):
        rows = tokenized.map(
            group, batched=True, num_proc=num_proc, fn_kwargs={"room": length - len(ends)}
        )
        rows.save_to_disk(os.path.join(output_dir, f"rows-{length}"), num_proc=num_proc)


def lddl(text: str, vocab_file: str, output_dir: str, processes: str, seq_length: str) -> None:
    """NVIDIA's preprocessor with static masks, scheduled by Dask on this machine.

    The text has its sentences already: NLTK, whose model would have to be downloaded, is left out.
    """
    import dask
    from lddl.dask.bert import pretrain

    # Else Dask leaves its spill files where the command is run.
    dask.config.set(temporary_directory=output_dir)
    source = os.path.join(output_dir, f"source-{seq_length}")
    os.makedirs(source)
    with open(text, encoding="utf-8") as stream:
        documents = stream.read().split("\n\n")
    with open(os.path.join(source, "text.txt"), "w", encoding="utf-8") as stream:
        for number, document in enumerate(documents):
            stream.write(f"document-{number} " + "\t".join(document.split("\n")) + "\n")
    pretrain.nltk = types.SimpleNamespace(
        download=lambda name: True,
        tokenize=types.SimpleNamespace(sent_tokenize=lambda line: line.split("\t")),
    )
    flags = {
        "schedule": "local",
        "local-n-workers": processes,
        "local-threads-per-worker": 1,
        "books": source,
        "sink": os.path.join(output_dir, f"rows-{seq_length}"),
        "target-seq-length": seq_length,
        "num-blocks": 2 * int(processes),
        "sample-ratio": 1.0,
        "duplicate-factor": 5,
        "vocab-file": vocab_file,
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    pretrain.main(pretrain.attach_args().parse_args([*words, "--masking"]))


if __name__ == "__main__":
    runners: dict[str, Callable[..., None]] = {
        "google": google,
        "huggingface": huggingface,
        "lddl": lddl,
    }
    runners[sys.argv[1]](*sys.argv[2:])
