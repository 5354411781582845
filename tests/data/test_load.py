"""The front door: splits, targets and reports from files of every kind of trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chainrule.core.recipe import Clean, Data
from chainrule.core.report import Finding
from chainrule.data.load import Dataset, Labelled, load, load_labelled
from chainrule.data.split import Cut
from chainrule.errors import DataError
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit

CLASSES = find_task("text-classification")
LABELS = find_task("multi-label-classification")
NUMBERS = find_task("regression")
HEAD = "text,label\n"
ROWS = "".join(f"text number {number},{'ab'[number % 2]}\n" for number in range(40))


def file(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_bytes(content.encode())
    return str(path)


def folder(path: Path, **files: str) -> Path:
    for name, rows in files.items():
        file(path, f"{name}.csv", HEAD + rows)
    return path


def found(dataset: Dataset, kind: str) -> Finding:
    return next(item for item in dataset.report.findings if item.kind == kind)


def kinds(dataset: Dataset) -> list[tuple[str, str]]:
    return [(item.severity, item.kind) for item in dataset.report.findings]


def evaluate(source: object, trained: Dataset, split: str | None = None) -> Labelled:
    known = {name: part.hashes for name, part in trained.splits.items()}
    return load_labelled(
        source,
        split,
        Data(),
        CLASSES,
        fields=trained.fields,
        labels=trained.labels,
        recorded_cut=trained.cut,
        known_hashes=known,
    )


def test_one_file_is_cut_in_proportion_and_the_cut_is_recorded(tmp_path: Path) -> None:
    dataset = load(file(tmp_path, "a.csv", HEAD + ROWS), Data(), CLASSES)
    assert dataset.report.ok
    assert {name: np.bincount(part.targets).tolist() for name, part in dataset.splits.items()} == {
        "train": [16, 16],
        "validation": [2, 2],
        "test": [2, 2],
    }
    assert dataset.labels == ("a", "b")
    assert dataset.fields == {"text": "text", "label": "label"}
    assert dataset.cut is not None
    assert dataset.cut.sha256 == dataset.fingerprint["all"]
    assert dataset.report.cut == {
        "sha256": dataset.cut.sha256,
        "rows": {"train": 32, "validation": 4, "test": 4},
        "by": "hash",
    }
    assert dataset.report.splits["train"].labels == {"a": 16, "b": 16}
    part = dataset.splits["test"].take(np.array([1]))
    assert part.inputs["text"] == [dataset.splits["test"].inputs["text"][1]]
    assert part.places.where(0).row == dataset.splits["test"].places.where(1).row


def test_validation_is_cut_from_train_where_a_folder_has_none(tmp_path: Path) -> None:
    dataset = load(folder(tmp_path, train=ROWS, test="new,a\n"), Data(validation_fraction=0.2), CLASSES)
    assert [(name, len(part)) for name, part in dataset.splits.items()] == [
        ("train", 32),
        ("validation", 8),
        ("test", 1),
    ]
    assert dataset.cut is not None
    assert set(dataset.cut.hashes) == {"train", "validation"}
    assert evaluate(tmp_path, dataset, "validation").split.inputs == dataset.splits["validation"].inputs
    assert evaluate(tmp_path, dataset, "train").split.inputs == dataset.splits["train"].inputs
    assert len(evaluate(tmp_path, dataset).split) == 1


def test_given_splits_are_left_alone(tmp_path: Path) -> None:
    dataset = load(folder(tmp_path, train=ROWS, dev="x,a\n"), Data(), CLASSES)
    assert [(name, len(part)) for name, part in dataset.splits.items()] == [("train", 40), ("validation", 1)]
    assert dataset.cut is None


def test_the_recorded_cut_is_used_again_for_the_same_rows(tmp_path: Path) -> None:
    lines = (HEAD + ROWS).splitlines(keepends=True)
    dataset = load(file(tmp_path, "a.csv", HEAD + ROWS), Data(), CLASSES)
    shuffled = file(tmp_path, "b.csv", lines[0] + "".join(reversed(lines[1:])))
    for source in (tmp_path / "a.csv", shuffled):
        for name in ("test", "validation", "train"):
            again = evaluate(source, dataset, name)
            assert again.name == name
            assert sorted(again.split.inputs["text"]) == sorted(dataset.splits[name].inputs["text"])
    assert not evaluate(shuffled, dataset).findings
    other = load(shuffled, Data(test_fraction=0.3), CLASSES, recorded=dataset.cut)
    assert len(other.splits["test"]) == 4


def test_a_new_file_is_used_whole_and_rows_seen_before_are_told(tmp_path: Path) -> None:
    dataset = load(file(tmp_path, "a.csv", HEAD + ROWS), Data(), CLASSES)
    new = file(tmp_path, "new.csv", HEAD + ROWS + "fresh,a\n")
    labelled = evaluate(new, dataset)
    assert (labelled.name, len(labelled.split)) == ("all", 41)
    messages = [item.message for item in labelled.findings]
    assert "32 rows of 41 (78.0 %) have the same text as rows the model was trained on." in messages
    assert "A file without splits that is not the one the model was trained on: all its 41 rows are used." in messages
    with pytest.raises(DataError, match="no split 'validation'") as raised:
        evaluate(new, dataset, "validation")
    assert "got a single file that is not the one the model was trained on" in str(raised.value.problems[0])


def test_a_split_that_is_not_there_is_refused_with_those_there_are(tmp_path: Path) -> None:
    dataset = load(folder(tmp_path, train=ROWS, validation="x,a\n"), Data(), CLASSES)
    with pytest.raises(DataError, match="no split 'test'") as raised:
        evaluate(tmp_path, dataset)
    assert "got only train, validation. Choose another --split." in str(raised.value.problems[0])
    with pytest.raises(DataError, match="nothing to train on"):
        load({"test": tmp_path / "train.csv"}, Data(), CLASSES)


def test_evaluating_refuses_labels_the_model_does_not_know(tmp_path: Path) -> None:
    dataset = load(file(tmp_path, "a.csv", HEAD + ROWS), Data(), CLASSES)
    with pytest.raises(DataError) as raised:
        evaluate(file(tmp_path, "b.csv", HEAD + "x,a\ny,zzz\n,a\n"), dataset)
    assert [problem.where.row for problem in raised.value.problems] == [3, 2]
    assert "expected a label that was in train: a, b, got 'zzz'" in str(raised.value.problems[1])


def test_a_label_that_train_never_shows(tmp_path: Path) -> None:
    source = folder(tmp_path, train=ROWS, validation="x,a\n", test="y,c\nz,b\n")
    dataset = load(source, Data(), CLASSES)
    assert not dataset.report.ok
    with pytest.raises(DataError) as raised:
        dataset.require_ok()
    assert str(raised.value.problems[0]) == (
        f"{source}/test.csv, row 1, line 2, field 'label': expected a label that was in train: a, b, got 'c'. "
        "Correct the label, or add rows with it to train and train again."
    )
    skipped = load(source, Data(on_bad_row="skip"), CLASSES)
    assert skipped.report.ok
    assert found(skipped, "skipped").message == "1 row of test was skipped: it has a label that train never shows."
    assert skipped.splits["test"].places.rows.tolist() == [2]


def test_one_class_only(tmp_path: Path) -> None:
    dataset = load(file(tmp_path, "a.csv", HEAD + "".join(f"t{number},yes\n" for number in range(10))), Data(), CLASSES)
    assert found(dataset, "one-class").message == "All 8 rows of train have the one label 'yes'."
    assert dataset.report.problems[0].expected == "at least two different labels"


def test_rows_without_text_or_label_or_with_nul_bytes(tmp_path: Path) -> None:
    source = file(tmp_path, "a.csv", HEAD + ROWS + ',a\n"  ",b\nx,\ny\0y,a\n')
    dataset = load(source, Data(), CLASSES)
    assert [(item.kind, item.rows) for item in dataset.report.findings] == [
        ("empty-text", (41, 42)),
        ("nul-byte", (44,)),
        ("missing-label", (43,)),
    ]
    assert [str(problem).removeprefix(source) for problem in dataset.report.problems] == [
        ", row 41, line 42, field 'text': expected a text, got an empty cell. Fill in or remove this row.",
        ", row 42, line 43, field 'text': expected a text, got only white space. Fill in or remove this row.",
        ", row 44, line 45, field 'text': expected text, got a NUL byte at character 2. "
        "Remove the NUL bytes; the file may be damaged.",
        ", row 43, line 44, field 'label': expected a label, got nothing. Label or remove this row.",
    ]
    assert dataset.report.as_dict()["ok"] is False
    assert len(dataset.report.as_dict()["problems"]) == 4


def test_thousands_of_bad_rows_are_counted_in_full(tmp_path: Path) -> None:
    dataset = load(file(tmp_path, "a.csv", HEAD + ROWS + ",a\n" * 3000), Data(), CLASSES)
    assert found(dataset, "empty-text").count == 3000
    assert len(found(dataset, "empty-text").rows) == 50
    assert len(dataset.report.problems) == 1000


def test_repeats_and_contradictions_within_and_between_splits(tmp_path: Path) -> None:
    source = folder(
        tmp_path, train=ROWS + "twice,a\ntwice,a\nunsure,a\nunsure,b\n", validation="new,a\n", test="twice,b\n"
    )
    dataset = load(source, Data(), CLASSES)
    assert [(item.kind, item.message, item.rows) for item in dataset.report.findings] == [
        ("duplicate-input", "2 rows of train repeat the text of an earlier row.", (42, 44)),
        ("conflicting-labels", "2 rows of train share 1 text with different labels.", (43, 44)),
        (
            "shared-between-splits",
            "1 row of test has the same text as rows of train (1 of them with another label).",
            (1,),
        ),
    ]


def test_rare_and_uneven_labels(tmp_path: Path) -> None:
    source = folder(tmp_path, train=ROWS + "odd,c\n", validation="x,a\n")
    dataset = load(source, Data(), CLASSES)
    assert found(dataset, "rare-class").message == "1 label has a single row in train: 'c'."
    assert found(dataset, "rare-class").rows == (41,)
    assert found(dataset, "imbalance").message == "The labels of train are uneven: 'a' has 20 rows, 'c' has 1."


def test_a_test_file_without_labels_is_set_aside(tmp_path: Path) -> None:
    folder(tmp_path, train=ROWS, validation="x,a\n")
    file(tmp_path, "test.csv", "text\nabc\n")
    dataset = load(tmp_path, Data(), CLASSES)
    assert list(dataset.splits) == ["train", "validation"]
    assert kinds(dataset) == [("warning", "unlabelled-split")]
    file(tmp_path, "validation.csv", "text\nabc\n")
    with pytest.raises(DataError, match="columns of the splits differ"):
        load(tmp_path, Data(), CLASSES)


def test_too_few_rows_to_cut(tmp_path: Path) -> None:
    dataset = load(file(tmp_path, "a.csv", HEAD + "x,a\ny,b\n"), Data(), CLASSES)
    assert found(dataset, "too-few-rows").message == "Too few rows to cut into splits: 2 different rows."
    assert not dataset.report.ok


def test_several_labels(tmp_path: Path) -> None:
    rows = "".join(f"t{number},{'a|b' if number % 2 else 'c'}\n" for number in range(40))
    odd = 'u,\nv,b | a\nw,"[""a"", ""c""]"\nx,[\'a\']\ny,a||b\n'
    dataset = load(file(tmp_path, "a.csv", "text,labels\n" + rows + odd), Data(), LABELS)
    assert dataset.labels == ("a", "b", "c")
    assert {item.kind: item.rows for item in dataset.report.findings} == {
        "bad-label": (44, 45),
        "label-white-space": (42,),
        "no-label": (41,),
    }
    whole = {
        text: row.tolist()
        for part in dataset.splits.values()
        for text, row in zip(part.inputs["text"], part.targets, strict=True)
    }
    assert (whole["u"], whole["v"], whole["w"]) == ([0, 0, 0], [1, 1, 0], [1, 0, 1])
    assert dataset.splits["train"].targets.dtype == np.float32
    lists = load(pd.DataFrame({"text": [f"t{n}" for n in range(20)], "labels": [["x", "y"], []] * 10}), Data(), LABELS)
    assert lists.report.ok
    assert lists.labels == ("x", "y")


def test_a_rare_label_among_several_stays_in_train() -> None:
    rng = np.random.default_rng(0)
    labels = [["common", *(["rare"] if rng.random() < 0.02 else [])] for _ in range(300)] + [["z", "unique"]]
    dataset = load(pd.DataFrame({"text": [f"t{n}" for n in range(301)], "labels": labels}), Data(), LABELS)
    assert dataset.report.ok
    assert dataset.labels == ("common", "rare", "unique", "z")
    assert len(dataset.splits["test"]) >= 28


def test_numbers(tmp_path: Path) -> None:
    rows = "".join(f"t{number},{number / 10}\n" for number in range(40))
    dataset = load(
        file(tmp_path, "a.csv", "text,score\n" + rows + 'u,nan\nv,"1,5"\nw,inf\nx,\ny,1_000\nz,-2e3\n'), Data(), NUMBERS
    )
    assert [(item.kind, item.rows) for item in dataset.report.findings] == [
        ("not-a-number", (41, 42, 43, 45)),
        ("missing-label", (44,)),
    ]
    assert "got '1,5'. Write a point, not a comma." in str(dataset.report.problems[1])
    assert dataset.labels == ("score",)
    assert dataset.splits["train"].targets.dtype == np.float64
    assert dataset.report.splits["train"].labels == {}
    same = load(pd.DataFrame({"text": list("abcdefgh"), "score": [1.0] * 8}), Data(), NUMBERS)
    assert found(same, "one-class").message == "All 6 rows of train have the same target, 1.0."


def test_labels_that_are_numbers_are_sorted_as_such() -> None:
    frame = pd.DataFrame({"text": [f"t{n}" for n in range(60)], "label": [10, 2, 1] * 20})
    assert load(frame, Data(), CLASSES).labels == ("1", "2", "10")


def test_chinese_pairs_with_byte_order_mark(tmp_path: Path) -> None:
    rows = "".join(f"他说着{number}这话,他是哑巴,{'矛盾' if number % 2 else '蕴含'}\n" for number in range(20))
    dataset = load(file(tmp_path, "a.csv", "\ufefftext_a,text_b,label\n" + rows), Data(), CLASSES)
    assert dataset.labels == ("矛盾", "蕴含")
    assert list(dataset.splits["train"].inputs) == ["text_a", "text_b"]
    assert dataset.report.ok


def test_cleaning_is_counted_and_comes_before_everything_else(tmp_path: Path) -> None:
    clean = Clean(unicode_nfkc=True, html=True, white_space=True, exact_duplicates=True)
    source = file(tmp_path, "a.csv", HEAD + ROWS + "<i>Ｇood</i>  one,a\nGood one,a\n<br>,b\n")
    dataset = load(source, Data(clean=clean), CLASSES)
    assert [(item.kind, item.rows) for item in dataset.report.findings] == [
        ("empty-text", (43,)),
        ("cleaned", (41, 43)),
        ("cleaned", (41,)),
        ("cleaned", (41, 43)),
        ("cleaned", (42,)),
    ]
    assert dataset.report.problems[0].got == "nothing that is left after cleaning"
    texts = [text for part in dataset.splits.values() for text in part.inputs["text"]]
    assert texts.count("Good one") == 1


def test_a_changed_row_is_a_changed_hash(tmp_path: Path) -> None:
    one = load(file(tmp_path, "a.csv", HEAD + ROWS), Data(), CLASSES)
    two = load(file(tmp_path, "b.csv", HEAD + ROWS.replace("number 7,b", "number 7,a")), Data(), CLASSES)
    assert one.cut is not None
    assert two.cut is not None
    assert len(np.setdiff1d(join(one.cut), join(two.cut))) == 1


def join(cut: Cut) -> np.ndarray:
    return np.concatenate(list(cut.hashes.values()))


@pytest.mark.parametrize(
    ("name", "task", "shared"),
    [
        ("trec", CLASSES, {("validation", 8), ("test", 9), ("test", 1)}),
        ("stsb", NUMBERS, {("validation", 6), ("test", 7), ("test", 3)}),
        ("ocnli", CLASSES, set()),
        ("banking77", CLASSES, {("test", 6), ("test", 1)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_real_data_says_what_is_known_of_it(
    shared_data: Callable[[str], Path], name: str, task: object, shared: set[tuple[str, int]]
) -> None:
    dataset = load(shared_data(name), Data(), task)  # type: ignore[arg-type]
    assert dataset.report.ok
    told = {(item.split, item.count) for item in dataset.report.findings if item.kind == "shared-between-splits"}
    assert told == shared


def test_real_data_with_a_label_missing_from_train(shared_data: Callable[[str], Path]) -> None:
    dataset = load(shared_data("smp2019_intent"), Data(), CLASSES)
    assert [problem.got for problem in dataset.report.problems] == ["'CLOSEPRICE_QUERY'"] * 2
