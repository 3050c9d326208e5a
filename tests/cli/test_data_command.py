"""`raycrt data`: what it prints and draws, and its one line for what is no data set."""

import numpy as np
import pytest
from PIL import Image

from raycrt.cli.options import spec_from
from raycrt.data import description
from raycrt.errors import InvalidInput
from raycrt.specs import Spec
from raycrt.training.options import rules
from tests.data.laws import part
from tests.data.stores import STORES

TABLE = """class  train  validation  test
ape       14           2     4
bat       14           2     4
cow       14           2     4
all       42           6    12
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "store", ["csv", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("folder", "npz"))]
)
def test_it_describes_and_draws_what_it_reads(store, shell, tmp_path):
    spec = STORES[store].spec(tmp_path, {"train": part(60)}).data
    out = tmp_path / "pictures" / "rows.png"
    said = shell("data", spec.path, "--out", out)
    shape = "90 (features)" if store == "csv" else "3 x 6 x 5 (channels, height, width)"
    high = 255 if store == "csv" else 1
    assert f"data: {spec.title}\nshape: {shape}\nvalues: 0 .. {high}" in said
    assert TABLE in said
    assert f"options: --set data.source={spec.source} --set data.path={spec.path}" in said
    drawn = np.asarray(Image.open(out).convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20


BAD = {
    "nothing": (["/no/such"], "there is nothing at /no/such"),
    "unknown set": (["torchvision:CIFAR11"], "nearest known is 'CIFAR10'"),
    "no kind": (["."], "data.source must name the kind of"),
    "idle option": (["digits", "--set", "train.epochs=3"], "no effect on this command"),
    "idle key": (["digits", "--set", "data.resize=[4, 4]"], "does not use data.resize=[4, 4]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_data_set_is_one_line_and_exit_code_2(name, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, said = BAD[name]
    ended = shell("data", *given, code=2)
    assert said in ended and len(ended.strip().splitlines()) == 1


@pytest.mark.parametrize("key", ["model.channels", "train.augmentation"])
def test_features_have_no_convolutions_and_no_augmentation(key):
    value = [4] if key == "model.channels" else {"shift": 1}
    facts = {"data.shape": [90], "data.class_names": ["ape", "bat"]}
    spec = Spec().override({"data.source": "table", "data.path": "t.csv", **facts, key: value})
    with pytest.raises(InvalidInput, match=r"must be left out unless the data is images.*\(90,\)"):
        rules.check_training(spec)


def test_it_names_the_label_and_advises_on_features_of_different_scales(
    shell, tmp_path, monkeypatch
):
    monkeypatch.setattr(description, "draw", lambda *given: None)
    lines = [f"{k},{1000 * k},{k % 2}" for k in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,target", *lines]))
    given = ["data", tmp_path / "rows.csv", "--out", tmp_path / "rows.png"]
    said = shell(*given)
    assert "\nlabels: target\n" in said and "advice: " in said
    assert "--set data.scale=auto divides" in said
    assert "advice: " not in shell(*given, "--set", "data.scale=auto")


def test_it_names_the_range_of_pixels_that_are_not_in_0_to_1(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(description, "draw", lambda *given: None)
    images = np.random.default_rng(0).random((40, 1, 5, 5)).astype(np.float32)
    for times in (1, 255):
        np.savez(tmp_path / "rows.npz", x=times * images, y=np.arange(40) % 2)
        said = shell("data", tmp_path / "rows.npz", "--out", tmp_path / "rows.png")
        assert "\nlabels: y\n" in said and "--set data.normalize=auto puts" in said
        assert ("not 0 .. 1, and are used as they are" in said) == (times == 255)


def test_commands_name_the_range_of_pixels_on_standard_error(tmp_path, capsys):
    images = np.random.default_rng(0).random((40, 1, 5, 5)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=255 * images, y=np.arange(40) % 2)
    given = ["data.source=arrays", f"data.path={tmp_path / 'rows.npz'}"]
    spec_from("digits", given, None, False)
    said = capsys.readouterr()
    assert said.out == "" and "note: pixels of arrays rows.npz are " in said.err
    spec_from("digits", [*given, "data.scale=auto"], None, False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("out", ["x.txt", "x", "rows.csv/x.png", "."])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, shell, out):
    (tmp_path / "rows.csv").write_text("not,read\n")
    said = shell("data", "digits", "--out", tmp_path / out, code=2)
    assert "--out must be a .png file that can be made" in said
