"""The half of these tests that needs TensorFlow; run by the project's own environment.

python -m tests.hugging_face.model_garden export FOLDER
    writes pretraining runs, what is exported from them, and what their models compute:
    `FOLDER/<name>/run`, `export`, `logits.npz`; and the text in `FOLDER/text.txt`.
python -m tests.hugging_face.model_garden convert FOLDER TEXT
    converts `FOLDER/<name>/saved` to `converted`, and writes its `logits.npz`.
"""

import os
import pathlib
import pydoc_data.topics
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import yaml

import tfrecords.vocabulary
from official_bert import configuration, convert, experiments
from official_bert.export import __main__ as export
from official_bert.export import source
from tests.bert import pretrained_runs
from tfrecords.tokenization import Tokenizer

LENGTH = 64
HEAD = {"num_classes": 2, "activation": "tanh", "name": "next_sentence"}
ENCODERS = {
    "tiny": (32, 2, 2, 64),
    "mini": (256, 4, 4, 1024),
    "headless": (32, 2, 2, 64),
}


def write_runs(folder: pathlib.Path) -> None:
    experiments.register()
    text = folder / "text.txt"
    topics = (text for _, text in sorted(pydoc_data.topics.topics.items()))
    text.write_text("\n".join(topics), encoding="utf-8")
    vocabulary = folder / "vocab.txt"
    assert not tfrecords.vocabulary.main(
        [f"--input={text}", "--vocab_size=1024", f"--output={vocabulary}"]
    )
    rows = len(vocabulary.read_text(encoding="utf-8").splitlines())
    for name, (hidden, layers, heads, inner) in ENCODERS.items():
        encoder = {
            "vocab_size": rows,
            "hidden_size": hidden,
            "num_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "max_position_embeddings": LENGTH,
        }
        cls_heads = [] if name == "headless" else [HEAD | {"inner_dim": hidden}]
        model = {"encoder": {"bert": encoder}, "cls_heads": cls_heads}
        schedule = {"warmup_constant_decay": {"warmup_steps": 1}}
        trainer = {"train_steps": 1, "optimizer_config": {"learning_rate": schedule}}
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump({"task": {"model": model}, "trainer": trainer}))
        params = configuration.load(experiments.PRETRAINING, [str(config)])
        pretrained_runs.write(params, folder, folder / name / "run")


def write_logits(run: str, text: pathlib.Path, file: pathlib.Path) -> None:
    pretrained = source.load(run)
    lines = pretrained_runs.sentences(text, 64)
    rows = pretrained_runs.rows(lines, pretrained.vocabulary, pretrained.lower_case, LENGTH)
    outputs = pretrained.model(rows.model_garden(), training=False)
    names = ["sequence_output", "pooled_output", "mlm_logits"]
    if pretrained.has_next_sentence:
        names.append("next_sentence")
    ids, lengths = Tokenizer(pretrained.vocabulary, pretrained.lower_case).encode(lines)
    np.savez(
        file,
        **{name: outputs[name].numpy() for name in names},
        input_ids=rows.ids,
        attention_mask=rows.mask,
        token_type_ids=rows.types,
        positions=rows.positions,
        lines=np.array(lines),
        ids=ids,
        lengths=lengths,
    )


def export_all(folder: pathlib.Path) -> None:
    write_runs(folder)
    for name in ENCODERS:
        run = folder / name / "run"
        arguments = [f"--model_dir={run}", f"--output_dir={run.parent / 'export'}"]
        assert not export.main(["--format=huggingface", *arguments])
        write_logits(str(run), folder / "text.txt", run.parent / "logits.npz")


def convert_all(folder: pathlib.Path, text: pathlib.Path) -> None:
    for saved in sorted(folder.glob("*/saved")):
        converted = saved.parent / "converted"
        arguments = ["--from=huggingface", str(saved), f"--output_dir={converted}"]
        assert not convert.main(arguments)
        write_logits(str(converted), text, saved.parent / "logits.npz")


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"export": export_all, "convert": convert_all}[command](*map(pathlib.Path, paths))
