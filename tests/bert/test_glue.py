"""GLUE's files in every task's real format, and the official metrics against plain formulas."""

import pathlib
from collections.abc import Sequence

import numpy as np
import pytest

from official_bert import classification_run, classification_scores, glue, tables
from tfrecords.errors import UserError

PAIR = ('a man "plays .', "a man's guitar")
# One data line of each, columns as they are distributed; {0} and {1} are texts, {2} the label.
FORMATS = {
    "sst-2": ("sentence\tlabel", "{0}\t{2}"),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "{2}\t702876\t702977\t{0}\t{1}",
    ),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\t{0}\t{1}\t{2}"),
    "cola": (None, "gj04\t{2}\t*\t{0}"),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t31193\t31193n\tgovernment\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{0}\t{1}\tneutral\t{2}",
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\t{0}\t{1}\t{2}"),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "133273\t213221\t213222\t{0}\t{1}\t{2}",
    ),
    "sts-b": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\t{0}\t{1}\t{2}",
    ),
}


def labels_of(task: str) -> Sequence[str]:
    return glue.TASKS[task].labels or ("5.000", "3.800", "0")


def write(folder: pathlib.Path, task: str, texts: Sequence[tuple[str, str, str]]) -> None:
    """Writes (first text, second text, label) as a task's training and dev files."""
    folder.mkdir(parents=True, exist_ok=True)
    header, line = FORMATS[task]
    lines = [] if header is None else [header]
    lines += [line.format(*values) for values in texts]
    content = "".join(f"{each}\n" for each in lines)
    for name in ("train.tsv", *(path for _, path in glue.TASKS[task].dev)):
        (folder / name).write_text(content, encoding="utf-8")


def read(task: str, folder: pathlib.Path) -> classification_run.Data:
    return classification_run.read(
        classification_run.ClassificationSettings(task="glue", glue_task=task, data_dir=str(folder))
    )


@pytest.mark.parametrize("task", glue.TASKS)
def test_every_task_is_read_as_it_is_distributed(task: str, tmp_path: pathlib.Path) -> None:
    labels = labels_of(task)
    write(tmp_path / glue.TASKS[task].folder, task, [(*PAIR, label) for label in labels])
    data = read(task, tmp_path)
    assert data.train.first == [PAIR[0]] * len(labels)
    single = task in ("sst-2", "cola")
    assert data.train.second == (None if single else [PAIR[1]] * len(labels))
    expected = [5.0, 3.8, 0.0] if task == "sts-b" else list(range(len(labels)))
    np.testing.assert_array_equal(data.targets(data.train), np.float32(expected))
    assert [name for name, _ in data.dev] == (["matched", "mismatched"] if task == "mnli" else [""])
    assert len(data.dev[0][1]) == len(labels)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged: how many are less, plus half of the equal ones."""
    less = (values[:, None] > values[None]).sum(axis=1)
    equal = (values[:, None] == values[None]).sum(axis=1)
    return less + (equal + 1) / 2


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return 100 * float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def accuracy(truth: np.ndarray, found: np.ndarray) -> float:
    return 100 * float((truth == found).mean())


def f1(truth: np.ndarray, found: np.ndarray, label: int = 1) -> float:
    both = ((truth == label) & (found == label)).sum()
    return float(200 * both / ((truth == label).sum() + (found == label).sum()))


# What GLUE's paper scores each task by (arXiv 1804.07461, table 1), as formulas. For two classes
# Matthews correlation is Pearson's of their numbers.
OFFICIAL = {
    **dict.fromkeys(("sst-2", "rte", "mnli", "qnli"), (accuracy,)),
    **dict.fromkeys(("mrpc", "qqp"), (accuracy, f1)),
    "cola": (correlation,),
    "sts-b": (correlation, lambda truth, found: correlation(ranks(truth), ranks(found))),
}


@pytest.mark.parametrize("name", glue.TASKS)
def test_a_tasks_scores_are_the_official_ones(name: str) -> None:
    generator = np.random.default_rng(1)
    task = glue.TASKS[name]
    # Nine in ten are right, and classes are of unequal size: no two metrics agree by chance.
    truth = generator.choice(len(task.labels or range(5)), 60, p=None if task.labels else [0.2] * 5)
    truth[:20] = 1
    wrong = generator.random(60) < 0.1
    found = np.where(wrong, 1 - np.minimum(truth, 1), truth)
    if task.labels is None:
        found = np.exp(found + generator.normal(size=60))
    values = list(classification_scores.score(task.metrics, truth, found).values())
    assert len({round(value, 6) for value in values}) == len(values)
    np.testing.assert_allclose(values, [each(truth, found) for each in OFFICIAL[name]], rtol=1e-9)


def test_macro_f1_is_the_mean_of_all_classes() -> None:
    truth, found = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    scored = classification_scores.score(["macro_f1"], truth, found, num_classes=3)
    expected = (f1(truth, found, 0) + f1(truth, found, 1) + 0) / 3
    assert scored["macro_f1"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_against_their_formulas(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth, found = generator.integers(0, 2, (2, 50))
    tp, tn = int((truth & found).sum()), int(((1 - truth) & (1 - found)).sum())
    fp, fn = int(((1 - truth) & found).sum()), int((truth & (1 - found)).sum())
    scored = classification_scores.score(
        ["accuracy", "f1", "macro_f1", "matthews_correlation"], truth, found
    )
    one, other = 200 * tp / (2 * tp + fp + fn), 200 * tn / (2 * tn + fp + fn)
    assert scored["accuracy"] == pytest.approx(100 * (tp + tn) / 50)
    assert scored["f1"] == pytest.approx(one)
    assert scored["macro_f1"] == pytest.approx((one + other) / 2)
    product = float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scored["matthews_correlation"] == pytest.approx(
        100 * (tp * tn - fp * fn) / np.sqrt(product)
    )
    # Rounded, so that there are ties.
    numbers = np.round(generator.uniform(0, 5, 40), 1).astype(np.float32)
    guesses = np.round(numbers + generator.normal(size=40), 1).astype(np.float32)
    scored = classification_scores.score(["pearson", "spearman"], numbers, guesses)
    assert scored["pearson"] == pytest.approx(correlation(numbers, guesses), rel=1e-5)
    expected = correlation(ranks(numbers), ranks(guesses))
    assert scored["spearman"] == pytest.approx(expected, rel=1e-9)


def test_constant_guesses_score_zero() -> None:
    truth = np.array([0, 1, 1])
    names = ["f1", "matthews_correlation", "pearson", "spearman"]
    assert set(classification_scores.score(names, truth, np.zeros(3, int)).values()) == {0.0}


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_lost_guesses_correlate_with_nothing(lost: float) -> None:
    truth, found = np.array([0.0, 1.0, 2.0]), np.array([0.0, lost, 2.0])
    scored = classification_scores.score(["pearson", "spearman"], truth, found)
    assert scored == {"pearson": 0.0, "spearman": 0.0}


def test_incomplete_lines_are_left_out_of_qqp_only(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in ("qqp", "rte"):
        write(tmp_path / task, task, [(*PAIR, label) for label in labels_of(task)])
        with (tmp_path / task / "train.tsv").open("a") as stream:
            stream.write("1\t2\n")
    data = read("qqp", tmp_path / "qqp")
    assert (len(data.train), data.train.left_out) == (2, 1)
    assert "train.tsv: 1 lines with missing fields; left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train\.tsv: line 4 has 2 fields, expected 4"):
        read("rte", tmp_path / "rte")


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("sst-2", "2", r"line 3 is labelled '2'; expected one of 0, 1"),
        ("mnli", "-", r"line 3 is labelled '-'; expected one of contradiction, entailment, neut"),
        ("sts-b", "high", r"line 3 has the score 'high'; expected a number from 0 to 5"),
        ("sts-b", "5.1", r"line 3 has the score '5.1'"),
        ("sts-b", "nan", r"line 3 has the score 'nan'"),
    ],
)
def test_unknown_labels_are_refused_by_line(
    task: str, label: str, message: str, tmp_path: pathlib.Path
) -> None:
    write(tmp_path, task, [(*PAIR, labels_of(task)[0]), (*PAIR, label)])
    with pytest.raises(UserError, match=message):
        read(task, tmp_path)


def test_what_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"no train\.tsv in .*; expected the folder of SST-2"):
        read("sst-2", tmp_path)
    write(tmp_path, "mnli", [(*PAIR, "neutral")])
    (tmp_path / "dev_mismatched.tsv").unlink()
    with pytest.raises(UserError, match=r"no file at .*dev_mismatched\.tsv"):
        read("mnli", tmp_path)
    with pytest.raises(UserError, match="no column named 'sentence'; its header is index, prom"):
        read("sst-2", tmp_path)
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(UserError, match="has no data lines"):
        read("sst-2", tmp_path)
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\n\xff\t1\n")
    with pytest.raises(UserError, match="is no UTF-8"):
        read("sst-2", tmp_path)


def test_delimited_files(tmp_path: pathlib.Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text('text,label\r\n"one, ""two""\nthree",a\r\n\r\nfour,b\r\n', newline="")
    table = tables.read_delimited(str(csv))
    found = tables.texts(table, first="text", second=None, label="label")
    assert found.first == ['one, "two"\nthree', "four"]
    assert (found.labels, found.lines) == (["a", "b"], [2, 5])
    tsv = tmp_path / "a.tsv"
    tsv.write_text('label\ttext\n10\t"one\n9\ttwo"\n')
    found = tables.texts(
        tables.read_delimited(str(tsv)), first="text", second="text", label="label"
    )
    assert found.first == found.second == ['"one', 'two"']
    assert tables.label_set(found) == ("9", "10")


def test_words_that_parse_as_numbers_without_a_place_are_words() -> None:
    labels = ["nan", "x", "10", "-inf", "NaN", "2", "inf", "Infinity"]
    for turn in range(len(labels)):
        turned = labels[turn:] + labels[:turn]
        given = tables.Texts(
            path="a.csv", first=turned, second=None, labels=turned, lines=list(range(8))
        )
        expected = ("2", "10", "-inf", "Infinity", "NaN", "inf", "nan", "x")
        assert tables.label_set(given) == expected


def test_glue_has_lines_with_more_fields_than_columns(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "mrpc", [(*PAIR, "1"), (PAIR[0], "a guitar\tof his", "0")])
    assert read("mrpc", tmp_path).train.labels == ["1", "0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "x", r"ends in none of \.csv, \.tsv"),
        ("a.csv", "text,label\none\n", "line 2 has 1 fields, expected 2"),
        ("a.tsv", "text\tlabel\none\n", "line 2 has 1 fields, expected 2"),
        ("a.csv", "text,label\ntwo,b\none,a,b\n", "line 3 has 3 fields, expected 2"),
        ("a.tsv", "text\tlabel\ntwo\tb\none\ta\tb\n", "line 3 has 3 fields, expected 2"),
        ("a.csv", 'text,label\n"one,a\n', "line 2: unexpected end of data"),
        ("a.csv", "text,text\none,a\n", "has several columns named 'text'"),
        ("a.csv", "text,label\none,a\n", "every line is labelled 'a'"),
        ("a.csv", "text,label\none,\n", "line 2 has no label"),
        ("a.csv", "", "has no data lines"),
    ],
)
def test_bad_delimited_files(name: str, content: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        tables.label_set(
            tables.texts(
                tables.read_delimited(str(tmp_path / name)),
                first="text", second=None, label="label",
            )
        )  # fmt: skip


def test_real_sst_2(shared_data: pathlib.Path) -> None:
    data = read("sst-2", shared_data / "sst-2")
    assert (len(data.train), len(data.dev[0][1])) == (67349, 872)
    assert data.train.left_out == 0 and data.train.second is None
    # The dev set has 444 positive sentences of 872.
    assert int(data.targets(data.dev[0][1]).sum()) == 444
