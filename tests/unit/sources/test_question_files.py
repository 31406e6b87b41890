"""Questions in users' files: what a file says is what the table says, or one clear message."""

import ast
import datetime
import decimal
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layercal import InputError
from layercal.metrics import readings
from layercal.sources import question_sources, questions

CATEGORIES = {"STEM": ["astronomy"], "Other": ["anatomy"]}
GOOD = {"question": "One?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "C"}


def write(path, rows):
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame.to_parquet(path)
    return path


def read_file(path):
    rows, rejected = question_sources.read(path.stem, {"file": str(path)})
    assert not rejected
    return rows


SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])


@SUFFIXES
def test_own_file(tmp_path, suffix):
    rows = [GOOD, {**GOOD, "question": 'Commas, "quotes"\nand 日本語?', "A": "007", "answer": "A"}]
    read = read_file(write(tmp_path / f"own{suffix}", rows))
    table = questions.to_table(read)
    assert list(table["question_id"]) == ["own/1", "own/2"]
    assert table["question"][1] == rows[1]["question"]
    assert list(table["choices"][1]) == ["007", "x", "y", "z"]
    assert list(table["answer"]) == [2, 0]


@SUFFIXES
def test_own_file_of_other_option_counts(tmp_path, suffix):
    two = [{"question": "Is it?", "A": "yes", "B": "no", "answer": "B", "split": "dev"}]
    (row,) = read_file(write(tmp_path / f"two{suffix}", two))
    assert (row["choices"], row["answer"], row["split"]) == (["yes", "no"], 1, "dev")
    lists = [["1", "2", "3"], list("1234567890"), ["one"], list("12345678901")]
    rows = [{"question": "Of many?", "choices": some, "answer": "C"} for some in lists]
    if suffix == ".csv":
        rows = [{**row, "choices": json.dumps(row["choices"])} for row in rows]
    found = read_file(write(tmp_path / f"many{suffix}", rows[:2]))
    assert [len(row["choices"]) for row in found] == [3, 10]
    with pytest.raises(InputError) as error:
        read_file(write(tmp_path / f"bad{suffix}", rows))
    assert "row 3: 1 options; 2 to 10 can be read" in str(error.value)
    assert "row 4: 11 options; 2 to 10 can be read" in str(error.value)


@SUFFIXES
def test_own_file_names_every_bad_row(tmp_path, suffix):
    rows = [GOOD, {**GOOD, "D": ""}, {**GOOD, "answer": "E"}, {**GOOD, "question": " "}]
    with pytest.raises(InputError) as error:
        read_file(write(tmp_path / f"own{suffix}", rows))
    message = str(error.value)
    assert "3 bad row(s)" in message
    assert "row 2: option D is empty" in message
    assert "row 3: answer is 'E', expected one of A, B, C, D" in message
    assert "row 4: the question is empty" in message


def test_own_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_file(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"expected one of \.csv, \.jsonl, \.parquet"):
        read_file(write(tmp_path / "own.csv", [GOOD]).rename(tmp_path / "own.xlsx"))
    for lacking in ({"C"}, {"answer"}, {"B", "C", "D"}):
        rows = [{key: value for key, value in GOOD.items() if key not in lacking}]
        with pytest.raises(InputError, match=f"column {min(lacking)} is missing"):
            read_file(write(tmp_path / "lacking.csv", rows))
    for name in ("broken.jsonl", "broken.parquet", "empty.csv"):
        path = tmp_path / name
        path.write_bytes(b"" if "empty" in name else b"\xff\xfe{not a table")
        with pytest.raises(InputError, match=name):
            read_file(path)


def test_csv_folder_of_mmlu(tmp_path):
    lines = {
        "test/anatomy_test.csv": 'Of\n"two" lines?,w,x,y,z,D\n"Short?",w,x,A\nEmpty?,w,,y,z,A\n',
        "test/astronomy_test.csv": '"Com,ma?"," w ",x,y,None,A\n',
        "dev/anatomy_dev.csv": "Shot?,w,x,y,z,B\n",
    }
    for name, text in lines.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace('Of\n"two" lines?', '"Of\n""two"" lines?"'))
    entry = {"csv_folder": str(tmp_path), "categories": CATEGORIES}
    rows, rejected = question_sources.read("x", entry)
    assert [(row["question_id"], row["split"]) for row in rows] == [
        ("test/anatomy/0", "test"),
        ("test/astronomy/0", "test"),
        ("dev/anatomy/0", "dev"),
    ]
    assert rows[0]["question"] == 'Of\n"two" lines?' and rows[0]["answer"] == 3
    assert rows[1]["choices"] == ["w", "x", "y", "None"] and rows[1]["category"] == "STEM"
    assert [(one["where"], one["reason"].split(";")[0]) for one in rejected] == [
        ("test/anatomy_test.csv, line 3", "4 cells"),
        ("test/anatomy_test.csv, line 4", "option B is empty"),
    ]
    with pytest.raises(InputError, match=r"with test/<subject>_test\.csv in it"):
        question_sources.read("x", {**entry, "csv_folder": str(tmp_path / "test")})


@pytest.mark.parametrize(
    ("split", "ids"),
    [
        ({}, ["test/anatomy/0", "dev/anatomy/0"]),
        ({"split": "test"}, ["test/anatomy/0", "dev/anatomy/0"]),
        ({"split": "val"}, ["val/anatomy/0", "dev/anatomy/0"]),
        ({"split": "dev"}, ["dev/anatomy/0"]),
    ],
)
def test_a_split_of_mmlu(tmp_path, split, ids):
    for name in ("test", "val", "dev"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}/anatomy_{name}.csv").write_text(f"In {name}?,w,x,y,z,D\n")
    entry = {"csv_folder": str(tmp_path), "categories": CATEGORIES, **split}
    rows, _ = question_sources.read("x", entry)
    assert [row["question_id"] for row in rows] == ids
    scored, shots = questions.scored_and_shots(rows)
    assert [row["question_id"] for row in scored] == ids[:1]
    assert [row["question_id"] for row in shots] == ids[-1:]


@pytest.fixture
def reviewed(tmp_path):
    """MMLU's folder with a list of reviewed questions; ``write`` writes its lines."""
    for name in ("test", "dev"):
        (tmp_path / name).mkdir()
        lines = "".join(f"{name} {i}?,w,x,y,z,D\n" for i in range(3))
        (tmp_path / f"{name}/anatomy_{name}.csv").write_text(lines)
    listed = tmp_path / "flags.csv"
    entry = {"csv_folder": str(tmp_path), "categories": CATEGORIES, "flags": str(listed)}

    def write(text):
        listed.write_text(text)
        return entry

    return write


def test_reviewed_questions_say_what_is_wrong_with_them(reviewed):
    """Those of the split that is studied; of the rest nothing is known."""
    head = "subject,row,error_type,correct_answer\n"
    entry = reviewed(f"{head}anatomy,2,wrong_groundtruth,B\nanatomy,0,ok,\n")
    rows, _ = question_sources.read("x", entry)
    flags = {row["question_id"]: row["flag"] for row in rows}
    expected = {"test/anatomy/0": "ok", "test/anatomy/2": "wrong_groundtruth"}
    assert {name: flag for name, flag in flags.items() if flag} == expected
    table = questions.to_table(rows)
    members = readings.groups(table[table["split"] == "test"])
    kept = {
        str(group): inside.tolist() for group, inside in members.items() if group.kind == "flag"
    }
    assert kept == {"flag:ok": [True, False, False], "flag:faulty": [False, False, True]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,number\n", "no column row, error_type; found subject, number"),
        ("subject,row,error_type\nanatomy,0,\n", "line 2: row 0 of anatomy has no error_type"),
        (
            "subject,row,error_type\nanatomy,0,ok\nanatomy,0,ok\n",
            "line 3: row 0 of .* is there twice",
        ),
        (
            "subject,row,error_type\nanatomy,3,ok\n",
            r"1 row\(s\) flag questions that test/ has not, .* row 3 of",
        ),
        ("subject,row,error_type\nlaw,0,ok\n", "row 0 of law"),
    ],
)
def test_flags_that_fit_no_question_are_refused(reviewed, text, message):
    with pytest.raises(InputError, match=message):
        question_sources.read("x", reviewed(text))


def test_a_split_that_a_folder_of_mmlu_lacks(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test/anatomy_test.csv").write_text("In test?,w,x,y,z,D\n")
    entry = {"csv_folder": str(tmp_path), "categories": CATEGORIES, "split": "val"}
    with pytest.raises(InputError, match=r"with val/<subject>_val\.csv in it"):
        question_sources.read("x", entry)


def table(path, *columns):
    """A parquet file of one question a row: its columns A and B, and what else there is."""
    n = len(columns[0])
    names = ["A", "B", "cluster", "subject"]
    given = dict(zip(names, columns, strict=False))
    fixed = {"question": [f"{i}?" for i in range(n)], "answer": ["A"] * n}
    pq.write_table(pa.table(fixed | given), path)
    return path


def lines(path, *rows):
    path.write_text("".join(row + "\n" for row in rows))
    return path


def test_numbers_of_json_stay_as_written(tmp_path):
    """Whatever the other rows hold: 4 is no 4.0 beside 4.50, and integers keep all digits."""
    written = [
        ["4", "5"],
        ["4.50", "1e3"],
        ["1152921504606846976", "1152921504606846977"],
        ["0", "false"],
        ["-0.10", "true"],
        ["1" * 5000, "2"],
    ]
    own = [
        f'{{"question": "{i}?", "A": {a}, "B": {b}, "answer": "A"}}'
        for i, (a, b) in enumerate(written)
    ]
    rows = read_file(lines(tmp_path / "own.jsonl", *own))
    assert [row["choices"] for row in rows] == written
    listed = [
        f'{{"question": "{i}?", "choices": [{a}, {b}], "answer": "A"}}'
        for i, (a, b) in enumerate(written)
    ]
    rows = read_file(lines(tmp_path / "listed.jsonl", *listed))
    assert [row["choices"] for row in rows] == written


def test_numbers_of_parquet_are_exact(tmp_path):
    """Of any type, alone or in lists; 4 is the same text in a column of integers or floats."""
    columns = {
        "int64": (pa.array([4, 2**60, 2**60 + 1, 0]), ["4", str(2**60), str(2**60 + 1), "0"]),
        "floats": (pa.array([4.0, 4.5, 0.1, 0.0]), ["4", "4.5", "0.1", "0"]),
        "float32": (pa.array([4, 0.1], pa.float32()), ["4", "0.1"]),
        "booleans": (pa.array([False, True]), ["false", "true"]),
        "decimals": (pa.array([decimal.Decimal("4.50")]), ["4.50"]),
        "dates": (pa.array([datetime.date(2020, 1, 2)]), ["2020-01-02"]),
        "categories": (pa.array(["4.50", "007"]).dictionary_encode(), ["4.50", "007"]),
    }
    for name, (column, expected) in columns.items():
        other = ["other"] * len(column)
        rows = read_file(table(tmp_path / f"{name}.parquet", column, other))
        assert [row["choices"][0] for row in rows] == expected, name
        twice = column.take(pa.array(np.repeat(np.arange(len(column)), 2)))
        starts = pa.array(np.arange(0, len(twice) + 1, 2))
        for made in (pa.ListArray, pa.LargeListArray):
            listed = made.from_arrays(starts, twice)
            own = {"question": other, "answer": ["A"] * len(column), "choices": listed}
            pq.write_table(pa.table(own), tmp_path / "lists.parquet")
            rows = read_file(tmp_path / "lists.parquet")
            assert [row["choices"] for row in rows] == [[one, one] for one in expected], name


def test_a_missing_number_is_missing(tmp_path):
    path = table(tmp_path / "own.parquet", pa.array([1.5, None, float("nan")]), ["x"] * 3)
    with pytest.raises(InputError) as error:
        read_file(path)
    assert "row 2: option A is empty" in str(error.value)
    assert "row 3: option A is empty" in str(error.value)
    path = lines(
        tmp_path / "own.jsonl",
        '{"question": "?", "A": null, "B": 0, "answer": "B"}',
        '{"question": "?", "A": NaN, "B": 0, "answer": "B"}',
    )
    with pytest.raises(InputError) as error:
        read_file(path)
    assert "row 1: option A is empty" in str(error.value)
    assert "row 2: option A is empty" in str(error.value)


def test_a_path_that_looks_like_a_partition_adds_nothing(tmp_path):
    folder = tmp_path / "subject=physics"
    folder.mkdir()
    (row,) = read_file(table(folder / "own.parquet", ["x"], ["y"]))
    assert row["subject"] == "own"
    made = questions.to_table([row])
    made.to_parquet(folder / "table.parquet", index=False)
    assert questions.load(folder / "table.parquet") == [row]


@SUFFIXES
def test_zero_is_a_name(tmp_path, suffix):
    """Of a cluster, a subject and so on; only what is missing gets a default."""
    named = {"cluster": 0, "subject": 0, "category": 0, "language": 0, "split": 0, "flag": 0}
    rows = [{**GOOD, **named, "question_id": 0}, {**GOOD, **named, "question_id": 1}]
    for row in read_file(write(tmp_path / f"own{suffix}", rows)):
        assert {name: row[name] for name in named} == dict.fromkeys(named, "0")
    assert [row["question_id"] for row in read_file(tmp_path / f"own{suffix}")] == ["0", "1"]


ENDS = pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])


@ENDS
@SUFFIXES
def test_line_ends_are_line_feeds(tmp_path, suffix, end):
    """Within questions and options, whatever system wrote the file."""
    row = {**GOOD, "question": f"One{end}two?", "A": f"a{end}{end}b"}
    path = tmp_path / f"own{suffix}"
    if suffix == ".csv":
        cells = ",".join(f'"{cell}"' for cell in row.values())
        path.write_bytes(f"{','.join(row)}{end}{cells}{end}".encode())
    else:
        write(path, [row])
    (read,) = read_file(path)
    assert read["question"] == "One\ntwo?"
    assert read["choices"] == ["a\n\nb", "x", "y", "z"]


@ENDS
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_of_every_unicode(tmp_path, encoding, end):
    """A byte order mark is no part of the first cell, in the folder and in a file."""
    folder = tmp_path / "mmlu/test"
    folder.mkdir(parents=True)
    cells = f'"日本{end}語?",w,x,y,z,B{end}'
    (folder / "anatomy_test.csv").write_bytes(cells.encode(encoding))
    entry = {"csv_folder": str(folder.parent), "categories": CATEGORIES}
    (row,), rejected = question_sources.read("x", entry)
    assert (row["question"], row["answer"], rejected) == ("日本\n語?", 1, [])
    own = tmp_path / "own.csv"
    own.write_bytes(f"question,A,B,C,D,answer{end}{cells}".encode(encoding))
    assert read_file(own)[0]["question"] == "日本\n語?"
    own = tmp_path / "own.jsonl"
    line = json.dumps({**GOOD, "question": "日本語?"}, ensure_ascii=False)
    own.write_bytes(f"{line}\n".encode(encoding))
    assert read_file(own)[0]["question"] == "日本語?"


def refused(path, content, folder=False):
    """What is said of a file that stands alone, or in MMLU's folder."""
    entry = {"file": str(path)}
    if folder:
        path = path.parent / "test/anatomy_test.csv"
        path.parent.mkdir(exist_ok=True)
        entry = {"csv_folder": str(path.parent.parent), "categories": CATEGORIES}
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        question_sources.read("own", entry)
    assert path.name in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("folder", [False, True])
def test_other_encodings_are_named(tmp_path, folder):
    path = tmp_path / "own.csv"
    header = b"" if folder else b"question,A,B,C,D,answer\n"
    content = header + "One?,w,x,y,z,A\nIt’s a café?,w,x,y,z,A\n".encode("cp1252")
    said = refused(path, content, folder)
    assert f"line {2 if folder else 3}: byte 0x92 is not UTF-8" in said
    assert "as Windows-1252 (cp1252) it reads" in said and "It’s a café" in said
    assert "iconv -f CP1252 -t UTF-8" in said
    said = refused(path, (header.decode() + "One?,w,x,y,z,A\n").encode("utf-16-le"), folder)
    assert "line 1: holds a NUL character, as UTF-16 without a byte order mark does" in said
    said = refused(path, "One?".encode("utf-16") + b"?", folder)
    assert "begins as utf-16 does, and is not; save the file as UTF-8" in said


@pytest.mark.parametrize("folder", [False, True])
def test_a_long_passage_is_read(tmp_path, folder):
    """Longer than the 131,072 characters that Python's CSV reader takes by default."""
    passage = "long " * 40_000 + "end?"
    path = tmp_path / ("test/anatomy_test.csv" if folder else "own.csv")
    path.parent.mkdir(exist_ok=True)
    header = "" if folder else "question,A,B,C,D,answer\n"
    path.write_text(f'{header}"{passage}",w,x,y,z,A\n')
    entry = {"file": str(path)}
    if folder:
        entry = {"csv_folder": str(tmp_path), "categories": CATEGORIES}
    (row,), _ = question_sources.read("own", entry)
    assert row["question"] == passage


def test_quotes_that_do_not_fit_are_named(tmp_path):
    """An open quote would swallow all rows after it."""
    content = b'question,A,B,answer\nOne?,w,x,A\n"Two?,w,x,A\nThree?,w,x,A\n'
    assert "row at line 3: its quotes do not fit" in refused(tmp_path / "own.csv", content)
    assert "row at line 3" in refused(tmp_path / "own.csv", content, folder=True)


def test_rows_that_do_not_fit_the_header_are_named(tmp_path):
    """One cell more made the first column an index, and every cell that of its neighbour."""
    content = b"question,A,B,answer\nOne, two?,w,x,A\nThree?,w,x\n\nFour?,w,x,A\n"
    said = refused(tmp_path / "own.csv", content)
    assert "2 bad row(s)" in said
    assert "row 1: 5 cells, but the header has 4" in said
    assert "row 2: 3 cells, but the header has 4" in said
    content = b"question,A,B,A,answer\nOne?,w,x,y,A\n"
    assert "column A occurs twice" in refused(tmp_path / "own.csv", content)


LISTS = [
    (["a", "it's", 'say "b"'], None),
    (["a, b", "[c]", "d\n'e'"], None),
    ([4, 4.5, True, "x"], ["4", "4.5", "True", "x"]),
    (["١", "日本"], None),
]


@pytest.mark.parametrize(("listed", "expected"), LISTS)
def test_a_list_as_python_prints_it(tmp_path, listed, expected):
    path = tmp_path / "own.csv"
    row = {"question": "?", "choices": listed, "answer": "B"}
    pd.DataFrame([row]).to_csv(path, index=False)
    assert ast.literal_eval(pd.read_csv(path)["choices"][0]) == listed
    assert read_file(path)[0]["choices"] == (expected or listed)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (str(np.array(["a", "b"])), "choices is \"['a' 'b']\", expected a list as JSON or Python"),
        ("a; b", "choices is 'a; b', expected a list"),
        ("__import__('os').getcwd()", "expected a list"),
        ("['a', ['b']]", "['a', ['b']]\", expected a list"),
        ('["a", ["b"]]', "choices is ['a', ['b']], expected a list of texts"),
        ("[" * 5000, "expected a list"),
        ("", "choices is missing, expected a list"),
        ("('a', 'b')", "expected a list"),
    ],
)
def test_a_cell_that_is_no_list_is_shown(tmp_path, cell, said):
    row = {"question": "?", "choices": cell, "answer": "B"}
    with pytest.raises(InputError) as error:
        read_file(write(tmp_path / "own.csv", [row]))
    assert "row 1: choices is" in str(error.value) and said in str(error.value)


def test_cells_that_are_no_text_are_named(tmp_path):
    rows = [
        {**GOOD, "question": ["One?"]},
        {**GOOD, "B": {"x": 1}},
        {**GOOD, "subject": "\ud800"},
        {"question": "?", "choices": {"text": ["a", "b"]}, "answer": "A"},
    ]
    with pytest.raises(InputError) as error:
        read_file(lines(tmp_path / "own.jsonl", *map(json.dumps, rows[:3])))
    assert "row 1: question is a list, expected text" in str(error.value)
    assert "row 2: B is a dict, expected text" in str(error.value)
    assert "row 3: half of a surrogate pair" in str(error.value)
    with pytest.raises(InputError, match=r"row 1: choices is \{'text': \['a', 'b'\]\}, expected"):
        read_file(write(tmp_path / "choices.jsonl", rows[3:]))
    with pytest.raises(InputError, match=r"column choices holds struct<text: list<.*; expected"):
        read_file(write(tmp_path / "choices.parquet", rows[3:]))
    with pytest.raises(InputError, match=r"own\.jsonl, line 2: not readable as JSON"):
        read_file(lines(tmp_path / "own.jsonl", json.dumps(GOOD), "{'question': 1}"))


def test_a_folder_of_bad_rows_says_why(tmp_path):
    said = refused(tmp_path / "x", b"question,A,B,C,D,answer\nOne?;w;x;y;z;A\n" * 9, folder=True)
    assert said.startswith(f"{tmp_path}: none of its 18 row(s) is a question\n")
    assert "anatomy_test.csv, line 1: answer is 'answer', expected one of A, B, C, D" in said
    assert "anatomy_test.csv, line 2: 1 cells; expected the question, four options" in said
    assert said.count("anatomy_test.csv, line") == 5
    header = b"question,A,B,answer\n"
    assert "holds no row" in refused(tmp_path / "own.csv", header)


def test_a_table_is_read_from_the_file_itself(tmp_path):
    """And not from what some cache keeps of a file of this name, size and time."""
    path = tmp_path / "own.parquet"
    for subject in "ab":
        row = questions.named("q", subject, "none", "test")
        row |= {"question": "?", "choices": ["x", "y"], "answer": 0}
        questions.to_table([row]).to_parquet(path, index=False)
        os.utime(path, (1e9, 1e9))
        assert [one["subject"] for one in questions.load(path)] == [subject]
