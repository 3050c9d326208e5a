"""Functions of the user's: what is said where their module cannot be imported."""

import pytest

from raycrt.errors import InvalidInput
from raycrt.system.imports import imported

BROKEN = {
    "no_python": ("x = 1\ndef load(:\n    pass\n", r"line 2 of \S*no_python.py raises SyntaxError"),
    "no_indent": ("def load():\npass\n", r"line 2 of \S*no_indent.py raises IndentationError"),
    "no_name": ("\n\nx = undefined\n", r"line 3 of \S*no_name.py raises NameError: .*'undefined'"),
    "no_load": ("x = 1\n", "must name a function of no_load, but it has no 'load'"),
    "number": ("load = 1\n", "'load' is int"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_module_is_one_sentence_with_file_and_line(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text, said = BROKEN[name]
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(InvalidInput, match=said) as caught:
        imported(f"{name}:load", "data.source", str(tmp_path))
    assert str(caught.value).startswith("data.source must name") and "\n" not in str(caught.value)
