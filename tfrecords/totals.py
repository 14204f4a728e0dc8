"""What the tasks of stage 2 count, added up: the check that the text is enough, and the manifest.

A total is a number under a key, a tuple of a name, a split and what else tells it apart; so tasks
may be added up in any order, on any machine.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tfrecords import schema, stages
from tfrecords.manifest import FORMAT_VERSION, Manifest, Sequences, Shard, SplitCounts

Key = tuple[str | int, ...]


def terms(
    options: stages.Options, task: stages.PairsTask, result: Mapping[str, Any]
) -> Iterator[tuple[Key, int]]:
    """What a task of stage 2, which returned `result`, adds to the totals.

    Documents count once, whatever the number of lengths and duplicates.
    """
    is_first = task.duplicate == 0 and task.seq_length == options.seq_lengths[0]
    if is_first:
        yield ("duplicate_documents",), result["duplicate_documents"]
    for split in options.splits:
        counts = result[split]
        if is_first:
            yield ("documents", split), counts["documents"]
            yield ("alone", split), counts["alone"]
        yield ("random_next", split, task.seq_length), counts["random_next"]
        for partition, examples in enumerate(counts["examples"]):
            if examples:
                yield ("examples", split, task.seq_length, partition), examples


def nested(plan: stages.Plan, totals: Mapping[Key, int]) -> dict[str, Any]:
    """The totals as JSON holds them; where there is none, 0."""
    options = plan.options

    def of(*key: str | int) -> int:
        return totals.get(key, 0)

    def examples(split: str, seq_length: int) -> list[int]:
        return [
            of("examples", split, seq_length, partition) for partition in range(plan.num_partitions)
        ]

    return {
        "documents": {split: of("documents", split) for split in schema.SPLITS},
        "duplicate_documents": of("duplicate_documents"),
        "alone": {split: of("alone", split) for split in options.splits},
        "examples": {
            f"{length}": {split: examples(split, length) for split in options.splits}
            for length in options.seq_lengths
        },
        "random_next": {
            f"{length}": {split: of("random_next", split, length) for split in options.splits}
            for length in options.seq_lengths
        },
    }


def problem_in(options: stages.Options, totals: Mapping[str, Any]) -> str | None:
    """Why the text is too little for what the options ask, or None where it is enough."""
    documents = totals["documents"]
    for length, splits in totals["examples"].items():
        count = sum(splits[schema.TRAIN])
        if count < options.num_shards:
            return (
                f"the text gives {count} training examples of length {length}, fewer than "
                f"--num_shards {options.num_shards}; give more text or fewer shards"
            )
        if not sum(splits.get(schema.EVAL, [1])):
            held_out = documents[schema.EVAL]
            without = f", without an example of length {length}" if held_out else ""
            return (
                f"--eval_fraction {options.eval_fraction} holds out {held_out or 'nothing'} of "
                f"{sum(documents.values())} documents{without}; give a larger one, or 0"
            )
    return None


def manifest_of(
    plan: stages.Plan,
    identity: Mapping[str, Any],
    totals: Mapping[str, Any],
    shards: Mapping[stages.ShardTask, Mapping[str, Any]],
) -> Manifest:
    """The manifest of a build.

    Args:
        plan: the build's.
        identity: what determines its bytes.
        totals: those of stage 2, nested.
        shards: what stage 4 returned for each of its tasks, in their order.
    """
    options = plan.options

    def split_counts(seq_length: int, split: str) -> SplitCounts:
        return SplitCounts(
            shards=tuple(
                Shard(**shard)
                for task, shard in shards.items()
                if (task.seq_length, task.split) == (seq_length, split)
            ),
            random_next=totals["random_next"][f"{seq_length}"][split],
        )

    return Manifest(
        directory=plan.output_dir,
        format_version=FORMAT_VERSION,
        records=options.records,
        feature_names=schema.V2,
        compression=options.compression,
        next_sentence=options.next_sentence,
        masked_lm_prob=options.masked_lm_prob,
        whole_word_mask=options.whole_word_mask,
        vocabulary_sha256=plan.vocabulary.sha256,
        vocab_size=len(plan.vocabulary),
        lower_case=options.lower_case,
        identity=identity,
        documents=totals["documents"],
        duplicate_documents=totals["duplicate_documents"],
        one_document_buckets=totals["alone"],
        sequences={
            seq_length: Sequences(
                max_predictions_per_seq=options.max_predictions(seq_length),
                splits={split: split_counts(seq_length, split) for split in options.splits},
            )
            for seq_length in options.seq_lengths
        },
    )
