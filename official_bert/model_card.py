"""`README.md` of a run's folder: what was trained, on what, how, and what came of it.

It has the front matter that Hugging Face's model pages read, and says nothing that the folder's
files (and the shards' manifest, where it is still there) do not say. Paths are cut to their last
names: where a run lay is nobody's business who reads its card.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
import yaml
from official.modeling.hyperparams import base_config

import tfrecords
from official_bert import input, versions
from official_bert.run_summary import Run, flattened, shown
from tfrecords import files, schema
from tfrecords.errors import UserError

CARD = "README.md"
MARK = "<!-- Written by official_bert.model_card. Without this line the file is left alone. -->"

PRETRAINING, QUESTION_ANSWERING = "masked-lm", "question-answering"
CLASSIFICATION = "text-classification"
_TITLES = {
    PRETRAINING: "BERT pretraining",
    QUESTION_ANSWERING: "Extractive question answering",
    CLASSIFICATION: "Text classification",
    None: "A task of the TF Model Garden",
}
_RESUME = "python -m official_bert.train --config_file=MODEL_DIR/params.yaml --model_dir=MODEL_DIR"
_EXPORT = (
    "python -m official_bert.export --format=saved_model --model_dir=MODEL_DIR --output_dir=EXPORT"
)
_FINETUNE = (
    "python -m official_bert.finetune --task=squad --train_file=TRAIN.json --dev_file=DEV.json "
    "--init_checkpoint=MODEL_DIR --model_dir=FINETUNED"
)

Facts = Mapping[str, Any]


def write(
    model_dir: str, params: base_config.Config | Mapping[str, Any] | None = None
) -> str | None:
    """Writes `model_dir/README.md` from what lies in `model_dir`, atomically.

    Args:
        model_dir: the folder of a run, finished or not.
        params: the run's config; None means its `params.yaml`.

    Returns:
        The path; None where a README stands that this function did not write, which is kept.

    Raises:
        UserError: no `params` and no `params.yaml`, or a damaged line in one of the logs.
    """
    path = os.path.join(model_dir, CARD)
    if tf.io.gfile.exists(path) and MARK not in files.read_bytes(path).decode("utf-8", "replace"):
        return None
    files.write_text(path, text(Run.load(model_dir, params)))
    return path


def text(run: Run) -> str:
    """The whole card."""
    name = os.path.basename(run.model_dir.rstrip("/"))
    title = _TITLES[task_of(run)]
    head = yaml.safe_dump({"library_name": "tensorflow", "tags": tags(run)}, sort_keys=False)
    sections = {
        "Results": _table(results(run)) + "\n" + noise(run),
        "Data": data(run),
        "Recipe": _table(recipe(run)),
        "Changed on the way": _changes(run),
        "Software": "Of the process that wrote this card:\n\n" + _table(versions.installed()),
        "Use": use(run),
    }
    body = "\n".join(f"## {section}\n\n{part}" for section, part in sections.items() if part)
    return f"---\n{head}---\n{MARK}\n\n# {name}\n\n{title}.\n\n{body}"


def task_of(run: Run) -> str | None:
    """What the run trained for, told by the fields of its task; None where they do not tell."""
    if "cls_heads" in (run.get("task.model") or {}):
        return PRETRAINING
    if "num_classes" in (run.get("task.model") or {}):
        return CLASSIFICATION
    return QUESTION_ANSWERING if "n_best_size" in (run.get("task") or {}) else None


def tags(run: Run) -> list[str]:
    """The tags of the front matter."""
    kind, _ = run.choice("task.model.encoder")
    return [tag for tag in ("tf-lans", kind, task_of(run), run.optimizer) if tag]


def results(run: Run) -> Facts:
    """What came of the run, by name."""
    speed = run.examples_per_second
    last, planned = run.last_step, run.get("trainer.train_steps")
    facts = {
        "steps": f"{last:,}" if planned is None else f"{last:,} of {planned:,}",
        "skipped steps (gradient not finite)": run.skipped_steps,
        "training loss, first": _number(run.first_loss),
        "training loss, mean of the last twentieth of the steps": _number(run.last_loss),
        "examples a second, median": None if speed is None else f"{speed:,.1f}",
    }
    for name, value in run.last_evaluation.items():
        if name != "step":
            facts[f"evaluation at step {run.last_evaluation['step']:,}: {name}"] = _number(value)
    return facts


def noise(run: Run) -> str:
    """The gradient noise scale beside the batch, or why it is not known."""
    found, batch_size = run.noise_scale, run.batch_size
    if found is not None and batch_size is not None:
        return (
            f"Gradient noise scale (arXiv 1812.06162, appendix A.1) over the last {found.steps:,} "
            f"steps with both norms: {found.rounded} examples; batch: {batch_size:,}. Is the batch "
            f"too large? {found.verdict(batch_size)}\n"
        )
    reason = {
        None: "no file says in how many pieces the batch was cut",
        1: "the batch was taken in one piece, and it takes two to tell",
    }.get(run.pieces, "the logged norms of the gradient do not tell it")
    return f"The gradient noise scale is not known: {reason}.\n"


def data(run: Run) -> str:
    """What the run read."""
    seen = run.last_step * (run.batch_size or 0)
    read = run.get("task.train_data") or {}
    casing = input.kept_casing(run.model_dir)
    vocabulary = os.path.join(run.model_dir, schema.VOCABULARY_FILE)
    digest = files.sha256(vocabulary) if tf.io.gfile.exists(vocabulary) else None
    facts: dict[str, Any] = {
        "training data": _last_name(read.get("input_path")),
        "evaluation data": _last_name(run.get("task.validation_data.input_path")),
        "training examples read": f"{seen:,}" if seen else None,
        "sequence length": read.get("seq_length"),
        "seed of the order": read.get("seed"),
        "vocabulary, sha256": digest,
        "lower-cased": read.get("do_lower_case") if casing is None else casing,
    }
    for name in ("masked_lm_prob", "max_predictions_per_seq", "whole_word_mask"):
        facts[f"asked of the masks: {name}"] = read.get(name)
    manifest = _manifest(run)
    # Another vocabulary means shards that were built anew since.
    if manifest is None or digest not in (None, manifest.vocabulary_sha256):
        return _table(facts)
    return _table(facts | manifest_facts(manifest, read.get("seq_length"), seen))


def _manifest(run: Run) -> tfrecords.Manifest | None:
    try:
        return run.manifest
    except UserError:
        # A damaged one says nothing of the run, which is done.
        return None


def manifest_facts(
    manifest: tfrecords.Manifest, seq_length: int | None, seen: int
) -> dict[str, Any]:
    """What a manifest says of the shards that a run read.

    Args:
        manifest: of the run's folder of shards.
        seq_length: the length that was read.
        seen: examples that the run has read.
    """
    facts: dict[str, Any] = {"records": manifest.records}
    read = [manifest.sequences[length] for length in manifest.seq_lengths if length == seq_length]
    for name, split in read[0].splits.items() if read else ():
        facts[f"{name} split"] = f"{split.examples:,} examples in {len(split.shards):,} shards"
        if name == schema.TRAIN and split.examples:
            facts["passes over the train split"] = f"{seen / split.examples:.3g}"
    facts |= {f"documents, {name}": f"{count:,}" for name, count in manifest.documents.items()}
    facts |= {
        "vocabulary, entries": f"{manifest.vocab_size:,}",
        "vocabulary, sha256": manifest.vocabulary_sha256,
        "lower-cased": manifest.lower_case,
        "built with whole words masked": manifest.whole_word_mask,
        "built with share of tokens masked": manifest.masked_lm_prob,
        "built with next-sentence pairs": manifest.next_sentence,
    }
    built = flattened(dict(manifest.identity))
    built.pop("vocabulary_sha256", None)
    return facts | {f"build: {field}": value for field, value in built.items()}


def recipe(run: Run) -> Facts:
    """The settings that make the run what it is, by name; those at null are left out."""
    facts: dict[str, Any] = {
        "started from": _last_name(run.get("task.init_checkpoint"), keep=2),
        "global batch, examples": run.batch_size,
        "micro-batch, examples of a replica": run.get("task.micro_batch_size") or None,
        "steps planned": run.get("trainer.train_steps"),
        "seed": run.get("task.seed"),
        "precision": run.get("runtime.mixed_precision_dtype") or "float32",
        "strategy": run.get("runtime.distribution_strategy"),
        "GPUs of a worker": run.get("runtime.num_gpus"),
    }
    workers = run.get("runtime.worker_hosts")
    facts["workers"] = len(workers.split(",")) if workers else None
    for name in ("enable_xla", "deterministic_ops", "loss_scale"):
        facts[f"runtime.{name}"] = run.get(f"runtime.{name}")
    for name, path in (
        ("encoder", "task.model.encoder"),
        ("optimizer", "trainer.optimizer_config.optimizer"),
        ("learning rate", "trainer.optimizer_config.learning_rate"),
    ):
        kind, fields = run.choice(path)
        facts[name] = kind
        facts |= {f"{name}: {field}": value for field, value in flattened(fields).items()}
    return facts


def use(run: Run) -> str:
    """Commands that go on from here."""
    kind = task_of(run)
    if kind in (QUESTION_ANSWERING, CLASSIFICATION):
        return (
            "To resume, run `python -m official_bert.finetune` again with the flags that began "
            "this run; it goes on from the newest checkpoint.\n"
        )
    if kind is None:
        return ""
    commands = {
        "Resume from the newest checkpoint": _RESUME,
        "Export": _EXPORT,
        "Finetune": _FINETUNE,
    }
    parts = [f"{what}:\n\n    {command}\n" for what, command in commands.items()]
    return "`MODEL_DIR` is this folder.\n\n" + "\n".join(parts)


def _changes(run: Run) -> str:
    if not run.changes:
        return ""
    return _table(
        {
            f"step {row['step']:,}: {row['field']}": f"{shown(row['was'])} to {shown(row['now'])}"
            for row in run.changes
        }
    )


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _last_name(path: Any, keep: int = 1) -> str | None:
    """The end of a path; None for what is no path."""
    return "/".join(path.rstrip("/").split("/")[-keep:]) if path and isinstance(path, str) else None


def _table(facts: Facts) -> str:
    """Two columns of Markdown; facts that are None are left out."""
    cells: Iterable[tuple[str, str]] = (
        (name, shown(value)) for name, value in facts.items() if value is not None
    )
    rows = [f"| {name} | {value.replace('|', chr(92) + '|')} |\n" for name, value in cells]
    return "| | |\n| --- | --- |\n" + "".join(rows)
