"""Questions in users' own files: MMLU's folder of CSV, and tables as CSV, JSON lines or parquet.

What a file says is taken as text, as written there: no cell is turned into a number and back.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from layercal import InputError
from layercal.sources.questions import LETTERS, answer_index, category_of, named, text

FOUR = LETTERS[:4]
IDENTITY = ("question_id", "subject", "category", "split", "language", "cluster", "flag")
COLUMNS = ("question", "answer", *LETTERS, *IDENTITY)
BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
Rows = Iterator[tuple[str, dict]]
Cells = Iterator[tuple[dict, str]]  # of a row by column, and why it is none, if so
csv.field_size_limit(
    2**31 - 1
)  # a passage may be longer than the 131,072 characters of the default


def read_csv_folder(name: str, entry: dict) -> Rows:
    """MMLU as its authors give it: ``{split}/{subject}_{split}.csv``, and ``dev/`` for shots.

    Parameters
    ----------
    name : str
    entry : dict
        ``csv_folder``, ``categories``; ``split``: test (the default), val or dev; and perhaps
        ``flags``, as :func:`read_flags` reads them. Rows have the question, four options and a
        letter.

    Raises
    ------
    InputError
        If the flags name questions that the split has not.
    """
    studied = entry.get("split", "test")
    flags = read_flags(Path(entry["flags"])) if "flags" in entry else {}
    for split, paths in mmlu_files(entry).items():
        for path in paths:
            subject = path.stem.removesuffix(f"_{split}")
            category = category_of(subject, entry["categories"], str(path))
            for index, (line, cells) in enumerate(_csv_lines(path)):
                flag = flags.pop((subject, str(index)), "") if split == studied else ""
                row = named(f"{split}/{subject}/{index}", subject, category, split, flag=flag)
                yield f"{split}/{path.name}, line {line}", row | _parse_mmlu(cells)
    if flags:
        (subject, number), *_ = flags
        raise InputError(
            f"{entry['flags']}: {len(flags)} row(s) flag questions that {studied}/ has not, the "
            f"first of them row {number} of {subject}; rows are counted from 0 within a subject"
        )


def read_flags(path: Path) -> dict[tuple[str, str], str]:
    """What reviewers found wrong with questions, as MMLU-Redux lists it (Gema et al. 2024).

    Parameters
    ----------
    path : Path
        CSV with columns ``subject``, ``row``, its number within the subject, and ``error_type``,
        ``ok`` where nothing is wrong; others count for nothing.

    Returns
    -------
    dict of str
        Subject and row -> error type.

    Raises
    ------
    InputError
        If it lacks a column, or has a row twice or without a type.
    """
    (_, columns), *lines = _csv_lines(path)
    wanted = ("subject", "row", "error_type")
    lacking = [name for name in wanted if name not in columns]
    if lacking:
        raise InputError(f"{path}: no column {', '.join(lacking)}; found {', '.join(columns)}")
    flags: dict[tuple[str, str], str] = {}
    for line, cells in lines:
        row = dict(zip(columns, map(text, cells), strict=False))
        subject, number, flag = (row.get(name, "") for name in wanted)
        if not flag or (subject, number) in flags:
            why = "is there twice" if flag else "has no error_type"
            raise InputError(f"{path}, line {line}: row {number} of {subject} {why}")
        flags[subject, number] = flag
    return flags


def mmlu_files(entry: dict) -> dict[str, list[Path]]:
    """Split -> files of MMLU's folder: of the split to study, and of the shots.

    Raises
    ------
    InputError
        If the folder holds no file of the split to study.
    """
    folder, split = Path(entry["csv_folder"]), entry.get("split", "test")
    files = {each: sorted((folder / each).glob(f"*_{each}.csv")) for each in (split, "dev")}
    if not files[split]:
        raise InputError(
            f"{folder}: expected MMLU's folder, with {split}/<subject>_{split}.csv in it"
        )
    return files


def _parse_mmlu(cells: list[str]) -> dict:
    if len(cells) != 6:
        reason = f"{len(cells)} cells; expected the question, four options and the answer"
        return {"question": cells[0], "reason": reason}
    question, *choices, answer = map(text, cells)
    return {"question": question, "choices": choices, "answer": answer_index(answer, FOUR)}


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line, counted from 1, at which each row starts, and its cells; empty lines are none."""
    lines, start = csv.reader(io.StringIO(_content(path), newline=""), strict=True), 1
    try:
        for cells in lines:
            if cells:
                yield start, cells
            start = lines.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, row at line {start}: its quotes do not fit ({error}); a quote inside a "
            "quoted cell is written twice"
        ) from error


def _content(path: Path) -> str:
    """Text of a file in UTF-8, or with the mark of another form of Unicode."""
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    marks = (name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark))
    encoding = next(marks, "utf-8")
    try:
        found = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, {_undecoded(path, content, error, encoding)}") from error
    before, nul, _ = found.partition("\0")
    if nul:
        line = before.count("\n") + 1
        raise InputError(
            f"{path}, line {line}: holds a NUL character, as UTF-16 without a byte order mark "
            f"does; if it is that, convert it: {_iconv('UTF-16LE', path)}"
        )
    return found


def _undecoded(path: Path, content: bytes, error: UnicodeDecodeError, encoding: str) -> str:
    place = error.start
    if encoding != "utf-8":
        return f"byte {place}: begins as {encoding} does, and is not; save the file as UTF-8"
    found = f"line {content[:place].count(10) + 1}: byte 0x{content[place]:02x} is not UTF-8"
    try:
        shown = content[max(0, place - 20) : place + 20].decode("cp1252")
    except UnicodeDecodeError:
        return f"{found}; save the file as UTF-8"
    return (
        f"{found}; as Windows-1252 (cp1252) it reads {shown!r} there. If that is right, convert "
        f"it: {_iconv('CP1252', path)}; if not, save the file as UTF-8"
    )


def _iconv(encoding: str, path: Path) -> str:
    return f"iconv -f {encoding} -t UTF-8 {path.name} > utf8{path.suffix}"


def read_file(name: str, entry: dict) -> Rows:
    """Read a user's own table.

    Parameters
    ----------
    name : str
    entry : dict
        ``file``: CSV, JSON lines or parquet with the columns ``question``; ``A``, ``B`` and so on,
        or ``choices``, a list of 2 to 10, where questions differ in their number of options;
        ``answer``, a letter; and optionally ``subject``, ``category``, ``question_id``,
        ``language``, ``cluster`` (the same for questions that belong together), ``split`` (``dev``
        for shots) and ``flag``.
    """
    path = Path(entry["file"])
    if path.suffix not in TABLES:
        raise InputError(f"{path}: expected one of {', '.join(TABLES)}, found {path.suffix!r}")
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    columns, rows = TABLES[path.suffix](path)
    letters = _option_columns(path, columns)
    for number, (cells, reason) in enumerate(rows, 1):
        row = {"question": text(cells.get("question")), "reason": reason}
        yield f"row {number}", row if reason else _own_row(cells, letters, path.stem, number)


def _own_row(cells: dict, letters: str, stem: str, number: int) -> dict:
    choices: list = [cells.get(letter) for letter in letters]
    reasons = [
        f"{name} is a {type(value).__name__}, expected text"
        for name, value in cells.items()
        if name in COLUMNS and isinstance(value, list | dict)
    ]
    if not letters:
        choices, reason = _choices(cells.get("choices"))
        reasons += [reason] * bool(reason)
    found = {name: text(cells.get(name)) for name in ("question", "answer", *IDENTITY)}
    choices = [text(choice) for choice in choices]
    if not _encodable([*found.values(), *choices]):
        reasons.append("half of a surrogate pair stands in it, which is no character")
    if reasons:
        question = found["question"].encode(errors="replace").decode()
        return {"question": question, "reason": "; ".join(reasons)}
    identity = found["question_id"] or f"{stem}/{number}"
    row = named(
        identity,
        found["subject"] or stem,
        found["category"] or "none",
        found["split"] or "test",
        found["language"] or "none",
        found["flag"],
    )
    return row | {
        "cluster": found["cluster"] or identity,
        "question": found["question"],
        "choices": choices,
        # letters only: whether a number counts from 0 or 1 would be a guess
        "answer": answer_index(found["answer"], LETTERS[: len(choices)]),
    }


def _encodable(texts: list[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _option_columns(path: Path, columns: list[str]) -> str:
    """Letters of the option columns, or none if the options stand in ``choices``."""
    twice = {name for name in (*COLUMNS, "choices") if columns.count(name) > 1}
    if twice:
        raise InputError(f"{path}: column {', '.join(sorted(twice))} occurs twice")
    letters = "".join(letter for letter in LETTERS if letter in columns)
    missing = [column for column in ("question", "answer") if column not in columns]
    if "choices" in columns and not letters and not missing:
        return ""
    if len(letters) < 2 or not LETTERS.startswith(letters):
        expected = LETTERS[: max(2, LETTERS.find(letters[-1:]) + 1)]
        missing += [letter for letter in expected if letter not in letters]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing (found: {', '.join(columns)}); each "
            "question needs question, answer, and its options in A, B .. or in a list, choices"
        )
    return letters


def _choices(cell: object) -> tuple[list, str]:
    """The options in a cell, or why there are none: a list, in CSV as JSON or Python writes it."""
    found = _listed(cell) if isinstance(cell, str) else cell
    if not isinstance(found, list):
        shown = "missing" if cell in (None, "") else f"{cell!r:.60}"
        return [], f"choices is {shown}, expected a list as JSON or Python writes it, with commas"
    if all(isinstance(choice, str | bool | None) for choice in found):
        return found, ""
    return [], f"choices is {found!r:.60}, expected a list of texts"


def _listed(cell: str) -> object:
    try:
        return _loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(cell.strip())
        strings = sum(token.type == tokenize.STRING for token in _python_tokens(cell))
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    # Python joins strings that no comma parts, as NumPy prints them: ['a' 'b'] is one string
    if not isinstance(found, list) or strings != sum(isinstance(one, str) for one in found):
        return None
    return [repr(one) if isinstance(one, int | float) else one for one in found]


def _python_tokens(cell: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(cell.strip()).readline)


def _loads(written: str) -> object:
    """JSON in which numbers stay as they are written; NaN, which JSON has not, is missing."""
    return json.loads(
        written,
        parse_int=str,
        parse_float=str,
        parse_constant=lambda name: None if name == "NaN" else name,
    )


def _csv_table(path: Path) -> tuple[list[str], Cells]:
    lines = _csv_lines(path)
    _, header = next(lines, (0, []))

    def rows() -> Cells:
        for _, cells in lines:
            fits = len(cells) == len(header)
            reason = "" if fits else f"{len(cells)} cells, but the header has {len(header)}"
            yield dict(zip(header, cells, strict=False)), reason

    return header, rows()


def _json_table(path: Path) -> tuple[list[str], Cells]:
    rows = []
    for number, line in enumerate(_content(path).split("\n"), 1):
        if line.strip():
            rows.append(_json_row(line, f"{path}, line {number}"))
    return list(dict.fromkeys(name for row in rows for name in row)), ((row, "") for row in rows)


def _json_row(line: str, where: str) -> dict:
    try:
        row = _loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not readable as JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is {line[:40]!r}; expected an object, {{...}}")
    return row


def _parquet_table(path: Path) -> tuple[list[str], Cells]:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not readable as parquet: {error}") from error

    def rows() -> Cells:
        names = [name for name in table.column_names if name in (*COLUMNS, "choices")]
        for cells in zip(*(_texts(table[name], name, path) for name in names), strict=True):
            yield dict(zip(names, cells, strict=True)), ""

    return table.column_names, rows()


def _texts(column: pa.ChunkedArray, name: str, path: Path) -> list:
    """Cells as text, numbers at their shortest, or as lists of such; NaN is missing."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    listed = any(is_one(column.type) for is_one in lists)
    inner = column.type.value_type if listed else column.type
    try:
        found = column.cast(pa.list_(pa.string()) if listed else pa.string()).to_pylist()
    except (ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: column {name} holds {column.type}; expected text, numbers or lists of these "
            f"({error})"
        ) from error
    if not pa.types.is_floating(inner):
        return found
    return [_without_nan(cell) for cell in found]


def _without_nan(cell: object) -> object:
    if isinstance(cell, list):
        return [_without_nan(one) for one in cell]
    return None if cell == "nan" else cell


TABLES = {".csv": _csv_table, ".jsonl": _json_table, ".parquet": _parquet_table}
