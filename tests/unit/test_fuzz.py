"""10,000 inputs for the readers of questions and configs: a clear error or a valid table."""

import copy
import functools
import json

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layercal import InputError
from layercal.checks import check, check_registry
from layercal.config import Model, QuestionSet
from layercal.sources import question_sources, questions

CSV, JSON_LINES, ANY_BYTES, CONFIGS, REGISTRIES = 2500, 2500, 1000, 3000, 1000
assert CSV + JSON_LINES + ANY_BYTES + CONFIGS + REGISTRIES == 10_000


def fuzz(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,  # the same inputs everywhere
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read(path, content):
    """Read a file; a table that comes out must be one."""
    path.write_bytes(content)
    try:
        rows, rejected = question_sources.read("own", {"file": str(path)})
        table = questions.to_table(rows)
    except InputError as error:
        assert str(error) and "Traceback" not in str(error)
        return
    assert not rejected and len(table) == len(rows)
    for row in table.to_dict("records"):
        assert not questions.row_problems(row)
    assert len(set(table["question_id"])) == len(table)


TEXT = st.text(max_size=8)
COLUMNS = ("question", "answer", "A", "B", "C", "choices", "subject", "question_id", "split")
HEADER = st.lists(st.one_of(st.sampled_from(COLUMNS), TEXT), max_size=8)
CELL = st.one_of(st.sampled_from(["A", "B", "", "1", '["x", "y"]', '"', "a\nb", "\0"]), TEXT)


@given(HEADER, st.lists(st.lists(CELL, max_size=9), max_size=4))
@fuzz(CSV)
def test_csv(place, header, rows):
    lines = [",".join(cells) for cells in (header, *rows)]
    read(place / "own.csv", "\n".join(lines).encode("utf-8", "surrogatepass"))


VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from("AB")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=4,
)
GOOD = st.fixed_dictionaries(
    {"question": TEXT, "choices": st.lists(TEXT, max_size=11), "answer": st.sampled_from("ABCX")}
)
SPOILT = st.dictionaries(st.sampled_from(COLUMNS), VALUE, max_size=3)


@given(st.lists(st.tuples(GOOD, SPOILT).map(lambda two: two[0] | two[1]) | VALUE, max_size=4))
@fuzz(JSON_LINES)
def test_json_lines(place, rows):
    read(place / "own.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


@given(st.sampled_from([".csv", ".jsonl", ".parquet"]), st.binary(max_size=60))
@fuzz(ANY_BYTES)
def test_any_bytes(place, suffix, content):
    read(place / f"own{suffix}", content)


@functools.cache
def loaded(path):
    return yaml.safe_load((ROOT / path).read_text())


def paths(value, here=()):
    """Every place in a nested config."""
    yield here
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*here, key))


def spoil(config, place, value, drop):
    """The config with one place changed, dropped, or given another key."""
    if not place:
        return value
    changed = copy.deepcopy(config)
    parent = functools.reduce(lambda inner, key: inner[key], place[:-1], changed)
    if drop:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return changed


CONFIG = loaded("config/config.yaml")


@given(st.sampled_from(list(paths(CONFIG))), VALUE, st.booleans())
@fuzz(CONFIGS)
def test_configs(place, value, drop):
    fixed = ("config/models.yaml", "config/questions.yaml")
    try:
        check(spoil(CONFIG, place, value, drop), *map(loaded, fixed))
    except InputError as error:
        assert str(error).startswith("the config cannot be used:\n  ")


ENTRIES = {
    kind: dict(list(loaded(f"config/{kind}.yaml").items())[:3]) for kind in ("models", "questions")
}
PLACES = [(kind, place) for kind, entries in ENTRIES.items() for place in paths(entries)]


@given(st.sampled_from(PLACES), VALUE, st.booleans())
@fuzz(REGISTRIES)
def test_registries(where, value, drop):
    kind, place = where
    entries = spoil(ENTRIES[kind], place, value, drop)
    try:
        keys = {"models": Model, "questions": QuestionSet}[kind]
        check_registry(f"config/{kind}.yaml", entries, keys)
    except InputError as error:
        assert str(error).startswith(f"config/{kind}.yaml cannot be used:\n  ")
