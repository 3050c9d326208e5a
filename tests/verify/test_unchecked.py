"""What the checker did not check it names, and what it is given it reads within bounds."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from raycrt.certification.table import storage
from raycrt.errors import InvalidInput
from raycrt.verify import verify_run
from raycrt.verify.checker import Checker
from raycrt.verify.model import Model
from raycrt.verify.table import row_files
from tests.verify.runs import edit_manifest, manifest_of, rows_of, spec_of, write_run


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("honest") / "run", spec_of(rows=20))


@pytest.fixture
def run(honest, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(honest, tmp_path / "run")


@pytest.fixture(scope="module")
def honest_few(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("few") / "run", spec_of(rows=3, width=8))


@pytest.fixture
def few(honest_few, tmp_path):
    """As `run`, of so few rows that a check takes next to no time."""
    return shutil.copytree(honest_few, tmp_path / "run")


@pytest.fixture
def unread(monkeypatch):
    """Fails where a row is read."""
    monkeypatch.setattr(Checker, "check_file", lambda self, file: pytest.fail(f"read {file}"))


def _copy(run, name):
    rows = run / "certificates" / "rows"
    target = rows / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(sorted(rows.glob("*.parquet"))[0], target)


def _directory(run, name):
    (run / "certificates" / "rows" / name).mkdir()


def _link(run, name):
    outside = run / "elsewhere.parquet"
    first = row_files(run / "certificates")[0]
    shutil.move(first, outside)
    (run / "certificates" / "rows" / name).symlink_to(outside)


@pytest.mark.parametrize(
    ("add", "name"),
    [
        (_copy, "sub/x.parquet"),
        (_copy, "X.PARQUET"),
        (_copy, "rows.parq"),
        (_copy, "_x.parquet"),
        (_copy, ".x.parquet"),
        (_copy, "../x.parquet"),
        (_copy, "../more/x.parquet"),
        (_copy, "../.x.parquet"),
        (_copy, "../.x.parq"),
        (_copy, "x\udcff.parquet"),
        (_directory, "y.parquet"),
        (_directory, "../.finished"),
        (_link, "z.parquet"),
    ],
)
def test_what_lies_beside_the_rows_is_named(run, add, name):
    add(run, name)
    report = verify_run(run)
    named = [f.sentence for f in report.findings if "was not checked" in f.sentence]
    entry = os.path.normpath(f"rows/{name.split('/')[0] if name[0] != '.' else name}")
    entry = entry.split("/x.parquet")[0] if "more" in name else entry
    assert named and named[0].startswith(repr(entry))


@pytest.mark.parametrize("name", ["manifest.json", "rows", "rows/000000000.parquet"])
def test_links_are_named(run, tmp_path, name):
    place = run / "certificates" / name
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert any(f"'{name}' was not checked" in sentence for sentence in _sentences(verify_run(run)))


@pytest.mark.parametrize("name", ["sub/x.parquet", "X.PARQUET", "notes.txt", "_x.parquet"])
def test_the_report_reads_no_rows_beside_which_others_lie(run, name):
    _copy(run, name)
    with pytest.raises(InvalidInput, match=r"plain \.parquet files alone"):
        storage.read(run / "certificates")


def test_marks_locks_and_unfinished_files_are_no_findings(run):
    home = run / "certificates"
    for name in (".finished", ".driver.lock", "driver"):
        (home / name).touch()
    shutil.copy(run / "train" / "spec.yaml", home)
    (home / "rows" / ".000000000.parquet.17.partial").write_bytes(b"PAR1")
    assert verify_run(run).sound
    files = storage.row_files(home)
    assert files == row_files(home) and len(storage.read(home)[0]) == 20


def test_more_rows_than_images_are_refused_unread(run, unread):
    row = rows_of(run).slice(0, 1)
    everything = row.take(pa.array(np.zeros(50_000, np.int64)))
    file = row_files(run / "certificates")[0]
    pq.write_table(everything, file)
    report = verify_run(run)
    assert file.stat().st_size < 1_000_000
    assert "there are 50004 rows, but 20 images; none was checked." in _sentences(report)
    assert report.checked == 0


def _sentences(report):
    return [finding.sentence for finding in report.findings]


def _replaced(run, **columns):
    """The first file with some columns in place of its own; its number of rows stays."""
    file = row_files(run / "certificates")[0]
    table = pq.read_table(file)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, file)


def test_numbers_beyond_a_witness_for_each_class_are_refused_unpacked(run, monkeypatch):
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: pytest.fail("unpacked"))
    rows = rows_of(run).to_pylist()[:16]
    many = [[0.0] * 200_000] + [row["witness_points"] for row in rows[1:]]
    _replaced(run, witness_points=many)
    os.remove(row_files(run / "certificates")[1])
    assert "'witness_points' holds" in _sentences(verify_run(run))[0]


def test_long_texts_are_refused_unpacked(run, monkeypatch):
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: pytest.fail("unpacked"))
    _replaced(run, status=["certified" * 20_000] + ["certified"] * 15)
    os.remove(row_files(run / "certificates")[1])
    assert "the column 'status' holds 180" in _sentences(verify_run(run))[0]


def _varint(value, length=None):
    """As Thrift writes an integer; filled up to a length."""
    value, found = 2 * value, []
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    filled = [found[0] | 128] + [128] * ((length or 0) - 2) + [0]
    return bytes(filled if length else found)


def test_pages_of_more_numbers_than_their_footer_says_are_refused_unpacked(run, monkeypatch):
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: pytest.fail("unpacked"))
    _replaced(run, witness_points=[[0.0] * 2_000_000] + [[]] * 15)
    first, other = row_files(run / "certificates")
    os.remove(other)
    raw = first.read_bytes()
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    told = _varint(2_000_015)
    assert raw.count(told, footer) >= 1 and len(raw) < 20_000
    first.write_bytes(raw[:footer] + raw[footer:].replace(told, _varint(20, len(told))))
    assert pq.ParquetFile(first).metadata.row_group(0).column(10).num_values == 20
    assert "holds 2000015 numbers, but its footer states 20" in _sentences(verify_run(run))[0]


@pytest.mark.parametrize("seed", range(2))
def test_files_with_bytes_changed_end_in_a_sentence(few, seed):
    """Or prove the same: some bytes say nothing of the rows."""
    rng = np.random.default_rng(seed)
    first = row_files(few / "certificates")[0]
    honest = first.read_bytes()
    for _ in range(40):
        raw = bytearray(honest)
        for place in rng.integers(len(raw), size=rng.integers(1, 4)):
            raw[place] = rng.integers(256)
        first.write_bytes(raw)
        verify_run(few)


@pytest.mark.parametrize("name", ["radius_verified", "radius"])
def test_columns_that_the_format_does_not_have_are_findings(run, name):
    file = row_files(run / "certificates")[0]
    table = pq.read_table(file)
    pq.write_table(table.append_column(name, table.column("radius")), file)
    assert any(f"the column '{name}'" in sentence for sentence in _sentences(verify_run(run)))


# Manifests

_WRONG = [None, True, -1, 1e300, 10**400, "text", "nan", [], [[]], {}, {"a": 1}, float("nan")]


def _told(run):
    """What the checker says of a run: a report that is not sound, or one sentence."""
    try:
        report = verify_run(run)
    except InvalidInput as error:
        assert len(str(error)) < 2000 and "\n" not in str(error)
        return str(error)
    return _sentences(report)[0] if report.findings else None


@pytest.mark.parametrize(
    "key",
    [
        "schema_version",
        "complete",
        "rows",
        "weights_sha256",
        "region",
        "deployment",
        "margin_curvature",
        "spec",
    ],
)
def test_a_manifest_of_wrong_types_ends_in_a_sentence(few, key):
    right = manifest_of(few)[key]
    for value in _WRONG:
        if value is right or (key == "complete" and value is True):
            continue
        edit_manifest(few, **{key: value})
        assert _told(few), (key, value)


@pytest.mark.parametrize("section", ["model", "data", "certify"])
def test_a_spec_of_wrong_types_ends_in_a_sentence(few, section):
    """Or in nothing: how many steps a solver had does not matter to a checker."""
    spec = manifest_of(few)["spec"]
    for key in spec[section]:
        for value in ({"a": 1}, [["x"]], 10**400):
            edit_manifest(few, spec={**spec, section: {**spec[section], key: value}})
            assert _told(few) or key in ("steps", "batch_size"), (section, key, value)


@pytest.mark.parametrize("depth", [200, 900, 5_000, 100_000])
def test_deep_nesting_ends_in_a_sentence(few, depth):
    file = few / "certificates" / "manifest.json"
    whole = json.loads(file.read_text())
    for key in ("spec", "margin_curvature", "region"):
        text = json.dumps({**whole, key: 0}).replace(f'"{key}": 0', f'"{key}": {"[" * depth}')
        file.write_text(text[:-1] + "]" * depth + "}")
        assert _told(few), key


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{\x00}\x00",
        b"[]",
        b"nul",
        b'{"rows": 20, "rows": 20}',
        b"{" * 10,
        b"\x00" * 99,
    ],
)
def test_a_manifest_that_is_no_object_of_json_ends_in_a_sentence(few, content):
    (few / "certificates" / "manifest.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"manifest\.json must"):
        verify_run(few)


def test_a_manifest_that_contradicts_itself_is_a_finding(run):
    spec = manifest_of(run)["spec"]
    for key, other in (("deployment", "float32"), ("region", "local")):
        edit_manifest(run, spec={**spec, "certify": {**spec["certify"], key: other}})
        assert f"{key} must be that of spec.certify in the manifest." in _sentences(verify_run(run))


# The model beside the rows


@pytest.mark.parametrize("kept", [0, 7, 100, -10])
def test_cut_weights_end_in_a_sentence(run, kept):
    file = run / "train" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InvalidInput, match="must be a safetensors file"):
        verify_run(run)


@pytest.mark.parametrize(
    "changed",
    [
        lambda w: w.astype(np.int64),
        lambda w: w.astype(bool),
        lambda w: w.reshape(-1),
        lambda w: w[None],
        lambda w: w[:0],
        lambda w: np.array(1.0, np.float32),
    ],
)
@pytest.mark.parametrize("model", [{}, {"channels": [3]}])
def test_weights_of_another_kind_end_in_a_sentence(tmp_path, model, changed):
    run = write_run(tmp_path, spec_of(rows=1, width=8, model=model))
    file = run / "train" / "model.safetensors"
    tensors = load_file(file)
    for name in ("maps.0.weight", "maps.1.weight"):
        save_file({**tensors, name: changed(tensors[name])}, file)
        assert _told(run)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"model",
        b"\xff\xfem\x00",
        b"caf\xe9: 1",
        b"[" * 50_000,
        b"{a: " * 50_000,
        b"model: &m {depth: 2}\ntrain: *m",
        b"a: &a [x]\n"
        + b"".join(b"%c: &%c [*%c,*%c]\n" % (i + 1, i + 1, i, i) for i in b"abcdefghij"),
        b"model: !!python/object:os.system x",
        b"model: !!timestamp x",
        b"model: 2024-13-45",
        b"model: {width: " + b"9" * 10_000 + b"}",
        b"model: 1\nmodel: [",
        b"model: \x00",
        b"model: " + b"x" * 2_000_000,
    ],
)
@pytest.mark.parametrize("place", ["train", "certificates"])
def test_a_broken_spec_ends_in_a_sentence(run, place, content):
    (run / place / "spec.yaml").write_bytes(content)
    assert _told(run)


# Nothing is written and nothing fetched


def _tree(*directories):
    return {
        str(path): path.stat().st_mtime_ns
        for directory in directories
        for path in sorted(directory.rglob("*"))
    }


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_checker_fetches_and_writes_nothing(run, tmp_path, monkeypatch, name):
    place = tmp_path / "place"
    place.mkdir()
    spec = manifest_of(run)["spec"]
    stranger = {**spec["data"], "name": name, "download": True, "directory": str(place)}
    edit_manifest(run, spec={**spec, "data": stranger})
    # A model of other inputs would be refused before the data is looked for.
    model = Model.load(run / "train" / "model.safetensors", spec_of(rows=1).model, (1, 8, 8))
    monkeypatch.setattr(Model, "load", staticmethod(lambda *given: model))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("asked the network"))
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(place)
    before = _tree(run, place)
    with pytest.raises(InvalidInput, match=f"must hold {name}"):
        verify_run(run)
    assert _tree(run, place) == before


def test_a_sound_run_is_left_as_it_is(run, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    before = _tree(run, home)
    assert verify_run(run).sound
    assert _tree(run, home) == before
