"""YAML files are read strictly, and paths in registries from the user's home."""

import pytest

from layercal import InputError
from layercal.sources import registry


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", "models.yaml, line 2: "),
        ("a: 1\nb: {c: 1,\n  c: 2}\n", "models.yaml, line 3: 'c' stands twice, first in line 2"),
        ("m: {}\nn: {}\nm: {}\n", "models.yaml, line 3: 'm' stands twice, first in line 1"),
    ],
)
def test_a_file_that_is_no_yaml_or_says_a_thing_twice_is_named(tmp_path, text, message):
    path = tmp_path / "models.yaml"
    path.write_text(text)
    for read in (registry.read, registry.read_yaml):
        with pytest.raises(InputError) as error:
            read(path)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read: No such file"):
        registry.read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(InputError, match=r"bytes\.yaml: "):
        registry.read_yaml(tmp_path / "bytes.yaml")


def test_what_is_merged_may_be_overridden(tmp_path):
    path = tmp_path / "questions.yaml"
    path.write_text("a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n")
    assert registry.read(path)["c"] == {"x": 3, "y": 1}


def test_home_is_put_for_a_tilde_in_paths_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "questions.yaml"
    path.write_text(
        "q: {file: ~/q.csv, prompt: ~/p.j2, description: ~/x}\n"
        "s: {licence: MIT, sources: [{folder: ~/m}, {gguf: /g}, {file: 7}]}\n"
    )
    assert registry.read(path) == {
        "q": {"file": "/home/me/q.csv", "prompt": "/home/me/p.j2", "description": "~/x"},
        "s": {"licence": "MIT", "sources": [{"folder": "/home/me/m"}, {"gguf": "/g"}, {"file": 7}]},
    }
