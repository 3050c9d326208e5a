"""Arrays and tables: names, layouts, types and labels, and what is refused with file and row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, Spec

X = np.random.default_rng(0).integers(0, 256, (40, 4, 6), dtype=np.uint8)
Y = np.arange(40) % 2


def _npz(folder: Path, **arrays: object) -> DataSpec:
    np.savez(folder / "set.npz", **arrays)
    return DataSpec(source="arrays", path=folder / "set.npz")


NAMED = [("x", "y"), ("images", "labels"), ("X_train", "y_train"), ("train_images", "train_labels")]


@pytest.mark.parametrize("names", NAMED)
def test_arrays_have_their_usual_names(names, tmp_path):
    found = data.load(_npz(tmp_path, **{names[0]: X, names[1]: Y, "mean": X.mean()}))
    assert len(found.train) + len(found.validation) + len(found.test) == 40
    assert found.train.images.shape[1:] == (1, 4, 6)


def test_arrays_of_other_names_are_stated(tmp_path):
    spec = _npz(tmp_path, scans_train=X, kind_train=Y, scans_test=X[:6], kind_test=Y[:6])
    with pytest.raises(InvalidInput, match=r"must hold an array 'images' \(data.input names"):
        data.check(spec)
    stated = DataSpec(source="arrays", path=spec.path, input="scans", label="kind")
    assert len(data.load(stated).test) == 6


LAYOUTS = {
    (8, 6): (1, 8, 6),
    (8, 6, 3): (3, 8, 6),
    (3, 8, 6): (3, 8, 6),
    (7, 8, 6): (7, 8, 6),
    (5,): (5,),
}


@pytest.mark.parametrize("stored", LAYOUTS, ids=str)
def test_channels_come_first(stored, tmp_path):
    images = np.random.default_rng(1).random((40, *stored))
    known = data.described(Spec().override({"data": _npz(tmp_path, x=images, y=Y).model_dump()}))
    assert data.shape(known.data) == LAYOUTS[stored]
    found = data.load(known.data).train.images
    assert found.dtype == torch.float32 and 0 < float(found.min()) < float(found.max()) < 1


def test_a_shape_that_may_be_read_either_way_is_stated(tmp_path):
    spec = _npz(tmp_path, x=np.random.default_rng(1).random((40, 3, 5, 4)), y=Y)
    with pytest.raises(InvalidInput, match=r"data.shape must state .* it is \(3, 5, 4\)"):
        data.check(spec)
    for shape in ((3, 5, 4), (4, 3, 5)):
        stated = spec.model_copy(update={"shape": shape})
        assert data.load(stated).train.images.shape[1:] == shape


LABELS = {
    "text": (np.array(["no", "yes"])[Y], ("no", "yes")),
    "bytes": (np.array([b"no", b"yes"])[Y], ("no", "yes")),
    "Booleans": (Y == 1, ("False", "True")),
    "far numbers": (np.array([300, -7])[1 - Y], ("-7", "300")),
    "whole floats": (Y * 2.0, ("0", "2")),
    "a column": (Y[:, None], ("0", "1")),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_become_classes_in_sorted_order(name, tmp_path):
    labels, names = LABELS[name]
    spec = data.described(Spec().override({"data": _npz(tmp_path, x=X, y=labels).model_dump()}))
    assert data.class_names(spec.data) == names
    found = data.load(spec.data)
    scaled = X.astype(np.float32) / 255
    expected = {image.tobytes(): y for image, y in zip(scaled, Y, strict=True)}
    for image, label in zip(found.fit.images, found.fit.labels.tolist(), strict=True):
        assert expected[image.numpy().tobytes()] == label


def test_stated_names_name_numbers_and_are_checked_otherwise(tmp_path):
    spec = _npz(tmp_path, x=X, y=Y + 5)
    named = spec.model_copy(update={"class_names": ("ape", "bat")})
    data.check(named)
    for names in (("5", "7"), ("ape", "bat", "cow")):
        with pytest.raises(InvalidInput, match=r"class_names states .* but the data has '5', "):
            data.check(spec.model_copy(update={"class_names": names}))
    text = _npz(tmp_path, x=X, y=np.array(["no", "yes"])[Y])
    with pytest.raises(InvalidInput, match="but the data has 'no', 'yes'"):
        data.check(text.model_copy(update={"class_names": ("ape", "bat")}))


def test_names_in_the_file_are_those_of_the_classes(tmp_path):
    spec = _npz(tmp_path, x=X, y=Y, class_names=np.array(["zebra", "ape"]))
    known = data.described(Spec().override({"data": spec.model_dump()})).data
    assert known.class_names == ("zebra", "ape")
    with pytest.raises(InvalidInput, match=r"one of the 2 classes that have a name, but row 39 of"):
        data.check(_npz(tmp_path, x=X, y=[*Y[:-1], -1], class_names=["zebra", "ape"]))


def _with(array: np.ndarray, row: tuple, value: float) -> np.ndarray:
    changed = array.astype(np.float64)
    changed[row] = value
    return changed


BAD_ARRAYS = {
    "whole numbers": ({"x": X.astype(np.int64), "y": Y}, r"'x' in \S+set.npz has int64"),
    "infinite": (
        {"x": _with(X, (3, 1, 2), np.inf), "y": Y},
        r"finite in float32, but entry \(0, 1, 2\) in row 3 of 'x' in \S+set.npz is inf",
    ),
    "too large for float32": ({"x": _with(X, (3, 1, 2), 1e300), "y": Y}, r"row 3 .* is inf"),
    "fewer labels": ({"x": X, "y": Y[:-1]}, r"39 labels and 40 inputs"),
    "half a label": ({"x": X, "y": Y / 2}, r"a label must be a whole number or text, but row 1 of"),
    "no label": ({"x": X, "y": _with(Y, (7,), np.nan)}, r"must have a label, but row 7 of"),
    "objects": ({"x": X, "y": np.array([None] * 40)}, r"must be a whole file of numpy arrays"),
    "one-hot labels": ({"x": X, "y": np.eye(2)[Y]}, r"labels? must be a whole number.*\(40, 2\)"),
    "no labels at all": ({"x": X}, r"must hold an array 'labels'"),
    "labels of another split": ({"x_train": X, "y_test": Y}, r"inputs of train and labels of test"),
    "two of a split": ({"x": X, "x_train": X, "y": Y}, r"the only one of its split.*'x' and 'x_tr"),
    "no rows": ({"x": X[:0], "y": Y[:0]}, r"there must be at least one row"),
    "other shape in test": (
        {"x_train": X, "y_train": Y, "x_test": X[:, :3], "y_test": Y},
        r"one shape, but row 0 of 'x_test' .*\(1, 3, 6\) and row 0 of 'x_train'.*\(1, 4, 6\)",
    ),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_data_set_are_refused(name, tmp_path):
    arrays, said = BAD_ARRAYS[name]
    with pytest.raises(InvalidInput, match=said) as caught:
        data.check(_npz(tmp_path, **arrays))
    assert len(str(caught.value).splitlines()) == 1


def test_a_single_array_is_no_data_set(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InvalidInput, match=r"an .npz file or a directory, not \S+x.npy"):
        data.check(DataSpec(source="arrays", path=tmp_path / "x.npy"))


ROWS = [f"{a / 7:.3f},{a % 5},{'ny'[a % 2]}" for a in range(40)]


def _csv(folder: Path, lines: list[str], name: str = "set.csv") -> DataSpec:
    (folder / name).write_text("\n".join(lines) + "\n")
    return DataSpec(source="table", path=folder / name)


def test_columns_are_features_as_they_are(tmp_path):
    spec = _csv(tmp_path, ["height,age,label", *ROWS])
    found = data.load(spec)
    assert found.fit.images.shape == (32, 2)
    assert sorted(set(found.fit.images[:, 1].tolist())) == [0, 1, 2, 3, 4]
    chosen = spec.model_copy(update={"input": ("age",), "label": "label"})
    assert data.load(chosen).fit.images.shape == (32, 1)


BAD_TABLES = {
    "no label column": (["height,age,kind", *ROWS], r"one column of labels, 'label' or .*'kind'"),
    "duplicate column": (["height,height,label", *ROWS], r"set.csv has two of 'height'"),
    "missing value": (
        ["height,age,label", *ROWS[:3], ",2,n", *ROWS],
        r"but row 3 of \S+set.csv has no 'height'",
    ),
    "not a number": (
        ["height,age,label", *ROWS[:3], "nan,2,n", *ROWS],
        r"but row 3 of \S+set.csv has no 'height'",
    ),
    "text feature": (
        ["height,age,label", "tall,3,y", *ROWS],
        r"a feature must be a column of numbers, but 'height' in \S+set.csv is string",
    ),
    "unlabelled row": (
        ["height,age,label", *ROWS[:3], "1.5,2,", *ROWS],
        r"each row must have a label, but row 3 of \S+set.csv has none",
    ),
    "one class": (["height,age,label", *ROWS[::2]], r"at least two classes"),
    "no rows": (["height,age,label"], r"at least one row, but \S+set.csv has none"),
    "rows of other lengths": (["height,age,label", "1,2", *ROWS], r"set.csv must be a table that"),
    "index of pandas": (
        [",age,label", *(f"{k},{row[6:]}" for k, row in enumerate(ROWS))],
        r"a feature must have a name, but \S+set.csv has an index as column ''",
    ),
    "label alone": (["label", *("ny" * 20)], r"no column besides the label"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_tables_that_are_no_data_set_are_refused(name, tmp_path):
    lines, said = BAD_TABLES[name]
    with pytest.raises(InvalidInput, match=said) as caught:
        data.check(_csv(tmp_path, lines))
    assert len(str(caught.value).splitlines()) == 1


def test_a_wrong_column_is_answered_with_the_one_that_was_meant(tmp_path):
    columns = [f"feature {k}" for k in range(40)]
    spec = _csv(tmp_path, [",".join([*columns, "target"]), ",".join(["1"] * 40 + ["n"])])
    with pytest.raises(
        InvalidInput, match=r"nearest known is 'target', .*\(25 more\).*'feature 39', 'target'$"
    ):
        data.check(spec.model_copy(update={"label": "targt"}))
    with pytest.raises(InvalidInput, match=r"has no 'featur 7'; the nearest known is 'feature 7'"):
        data.check(spec.model_copy(update={"input": ("featur 7",)}))


def test_files_of_a_split_are_read_in_order_and_rows_named_in_them(tmp_path):
    for part in range(2):
        _csv(tmp_path, ["height,age,label", *ROWS[20 * part :][:20]], f"train-{part}.csv")
    _csv(tmp_path, ["height,age,label", *ROWS[:4]], "val.csv")
    spec = DataSpec(source="table", path=tmp_path)
    found = data.load(spec)
    assert (len(found.fit), len(found.validation), len(found.test)) == (36, 4, 8)
    _csv(tmp_path, ["height,age,label", *ROWS[:2], "1,,n"], "train-1.csv")
    with pytest.raises(InvalidInput, match=r"row 2 of \S+train-1.csv has no 'age'"):
        data.check(spec)
    _csv(tmp_path, ["height,age,label", *ROWS], "more.csv")
    with pytest.raises(InvalidInput, match=r"must hold files named train, validation and test"):
        data.check(spec)


@pytest.mark.parametrize("columns", ["age,height,label", "height,weight,label"])
def test_all_splits_have_the_same_columns_in_one_order(columns, tmp_path):
    _csv(tmp_path, ["height,age,label", *ROWS], "train.csv")
    _csv(tmp_path, [columns, *ROWS], "test.csv")
    with pytest.raises(InvalidInput, match=r"same columns in one order.*train.csv .*test.csv has"):
        data.check(DataSpec(source="table", path=tmp_path))


def _parquet(folder: Path, **columns: object) -> DataSpec:
    parquet.write_table(pa.table(columns), folder / "set.parquet")
    return DataSpec(source="table", path=folder / "set.parquet")


def test_tensor_columns_are_images(tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(X)
    found = data.load(_parquet(tmp_path, scan=tensors, label=Y))
    assert found.train.images.shape[1:] == (1, 4, 6) and float(found.fit.images.max()) == 1


def test_lists_that_are_not_full_or_of_unknown_scale_are_refused(tmp_path):
    ragged = pa.array([[0.5, 1.0]] * 39 + [[1.0]])
    with pytest.raises(InvalidInput, match=r"row 39 of \S+ has \(1,\) and row 0 of \S+ has \(2,\)"):
        data.check(_parquet(tmp_path, x=ragged, label=Y))
    hole = pa.array([[0.5, 1.0]] * 39 + [None])
    with pytest.raises(InvalidInput, match=r"row 39 of .* has no 'x'"):
        data.check(_parquet(tmp_path, x=hole, label=Y))
    with pytest.raises(InvalidInput, match=r"row 0 of .* has int64"):
        data.check(_parquet(tmp_path, x=pa.array([[1, 2]] * 40), label=Y))
