"""Questions that a small model learns by heart in seconds, and runs to finetune on them from."""

import itertools
import json
import pathlib
from typing import Any

import tensorflow as tf
import tf_keras
import yaml
from official.core import task_factory

from official_bert import configuration, experiments
from official_bert.trainer import build_trainer

WORDS = ["the", "of", "is", "and", "in", "red", "blue", "large", "small", "colour", "size"]
WORDS += ["green", "box", "lamp", "chair", "door", "what"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "?", ".", ":"]
ENCODER = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 72,
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}
MODEL = {
    "encoder": {"type": "bert", "bert": ENCODER},
    "cls_heads": [
        {"inner_dim": 64, "num_classes": 2, "dropout_rate": 0.0, "name": "next_sentence"}
    ],
}

TRAINER = {
    "train_steps": 1,
    "optimizer_config": {
        "learning_rate": {"warmup_constant_decay": {"warmup_steps": 1}},
    },
}


def questions(version_2: bool = False) -> dict[str, Any]:
    """24 contexts that name a colour among other words, anywhere; the question asks for it.

    Of SQuAD v2.0 a second question asks each for what it does not say.
    """
    articles = []
    cases = itertools.product(("box", "lamp", "chair", "door"), ("red", "blue", "green"), (0, 1))
    for number, (thing, colour, place) in enumerate(cases):
        size = ("large", "small")[number % 2]
        words = (f"{colour} and {size}", f"{size} and in {colour}")[place]
        context = f"the {thing} of the door is {words} ."
        question: dict[str, Any] = {
            "id": f"question {number}",
            "question": f"what colour is the {thing} ?",
            "answers": [{"text": colour, "answer_start": context.index(colour)}],
        }
        qas = [question]
        if version_2:
            question["is_impossible"] = False
            qas.append(
                {
                    "id": f"impossible {number}",
                    "question": f"what is in the {thing} ?",
                    "answers": [],
                    "is_impossible": True,
                }
            )
        articles.append({"title": "t", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": "v2.0" if version_2 else "1.1", "data": articles}


def make_folder(root: pathlib.Path) -> pathlib.Path:
    """SQuAD files, a vocabulary, a config, and a pretraining run with a checkpoint."""
    (root / "squad.json").write_text(json.dumps(questions()))
    (root / "squad2.json").write_text(json.dumps(questions(version_2=True)))
    (root / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    (root / "small.yaml").write_text(yaml.safe_dump({"task": {"model": MODEL}, "trainer": TRAINER}))
    experiments.register()
    params = configuration.load(experiments.PRETRAINING, [str(root / "small.yaml")])
    task = task_factory.get_task(params.task)
    # Finetuning learns from any such weights, but not from all in as few steps.
    tf_keras.utils.set_random_seed(0)
    trainer = build_trainer(params, task, train=True, evaluate=False)
    run = root / "pretraining"
    run.mkdir()
    configuration.save(params, str(run))
    (run / "vocab.txt").write_bytes((root / "vocab.txt").read_bytes())
    manager = tf.train.CheckpointManager(trainer.checkpoint, str(run), max_to_keep=1)
    manager.save(checkpoint_number=7)
    return root


def command_line(folder: pathlib.Path, model_dir: str, *more: str, data: str = "squad") -> list:
    """A finetuning of `folder / model_dir`, trained and scored on the same file."""
    return [
        "--task=squad",
        f"--train_file={folder / data}.json",
        f"--dev_file={folder / data}.json",
        f"--model_dir={folder / model_dir}",
        "--batch_size=16",
        "--seq_length=72",
        "--learning_rate=1e-3",
        *more,
    ]
