"""Rotations of a question's options, and the questions that make sense in one order only."""

from __future__ import annotations

import re
from itertools import combinations

from layercal import InputError
from layercal.sources.questions import LETTERS

# Of the languages that the embedded sets are in: "all of the above", "ninguna de las anteriores"
EVERY = (
    r"all|any|both|either|neither|none|alle[sr]?|keine[sr]?|nichts|beide[sr]?|tod[oa]s?|"
    r"ningun[oa]|amb[oa]s|tout(?:e?s)?|tous|aucune?|tutt[eio]|nessun[oa]|entramb[ei]|tudo|nenhuma?"
)
LINK = (
    r"of|the|these|those|options?|answers?|choices?|statements?|responses?|der|des|das|die|l[ao]s?|"
    r"les?|de|del|della|delle|dei|gli|i|di|d[ao]s?|ce|cui|qui|que|o|as|os"
)
PLACE = (
    r"above|below|foregoing|preceding|previous|oben|obigen|vorstehenden|anterior(?:es)?|ci-dessus|"
    r"précède|précédente?s?|precedent[ei]|sopra|acima|precede"
)
BY_PLACE = re.compile(
    rf"\W*(?:(?:{EVERY})(?:(?:\s+(?:{LINK}))+\s+(?:{PLACE})\b(?!-)|\s+(?:{PLACE})\W*$)"
    r"|(?:ऊपर\s+के|उपरोक्त)\s+(?:सभी|में)|(?:ทั้งหมด|ไม่มีข้อ).*ข้างต้น)",
    re.IGNORECASE,
)
AND = r"and|or|nor|und|oder|noch|als\s+auch|y|o|ni|como|et|ou|e|che|n[eèé]m?|और|และ"
BEFORE = (
    rf"{EVERY}|{LINK}|only|sowohl|weder|von|tanto|ni|deux|sia|n[eèé]m?|ทั้ง|ข้อ|punti|itens|"
    r"सभी|as|well"
)


def fixed(question: dict) -> str:
    """Say why a question's options cannot be asked in another order; empty if they can.

    Equal options cannot be told apart once they have moved; "all of the above" or "both A and B"
    mean something else elsewhere, or among letters that name other options.

    Parameters
    ----------
    question : dict
        A row of the question table.
    """
    choices = question["choices"]
    letters = LETTERS[: len(choices)]
    for one, other in combinations(range(len(choices)), 2):
        if choices[one] == choices[other]:
            return f"options {letters[one]} and {letters[other]} are equal"
    by_letter = _by_letter(letters)
    for letter, choice in zip(letters, choices, strict=True):
        if BY_PLACE.match(choice) or by_letter.match(choice):
            return f"option {letter} refers to others by place or letter: {choice:.60}"
    return ""


def _by_letter(letters: str) -> re.Pattern:
    """Options that are nothing but letters of other options, joined, such as "both A and B"."""
    alone = f"[{letters}]"
    letter = rf"(?:\({alone}\)|\[{alone}\]|{alone}\)|{alone}\b)"
    several = rf"{letter}(?:\s*(?:[,/&]|\s(?:{AND})\s|(?<=\))\s)+\s*(?:(?:{AND})\s+)?{letter})+"
    return re.compile(
        rf"\W*(?:(?:{BEFORE})[\s,]+)*(?:{several}|(?<=only\s){letter}|{letter}(?=\s+only))"
        r"(?:\W*$|\s+(?:only|alone|above|both|दोनों|are|is|will|seront|werden|s[ae]r[áàã]o?|saranno|จะ))",
        re.IGNORECASE,
    )


def rotate(question: dict, by: int) -> dict:
    """Rotate the options: letter j then shows option (j + by) mod k, and the answer moves along.

    Parameters
    ----------
    question : dict
        A row of the question table.
    by : int
    """
    choices = question["choices"]
    return {
        **question,
        "choices": [*choices[by:], *choices[:by]],
        "answer": (question["answer"] - by) % len(choices),
    }


def rotations(questions: list[dict]) -> int:
    """How many rotations of the options there are.

    Parameters
    ----------
    questions : list of dict
        Rows of the question table.

    Raises
    ------
    InputError
        If the questions differ in their number of options: they could not be averaged alike.
    """
    counts = {len(question["choices"]) for question in questions}
    if len(counts) > 1:
        raise InputError(
            f"option_order: cyclic needs questions with the same number of options, found "
            f"{', '.join(map(str, sorted(counts)))}; use option_order: as-is"
        )
    return counts.pop()


def orders(question: dict, count: int) -> list[dict]:
    """A question in its first ``count`` rotations, or as often as it is if its order is fixed."""
    return [rotate(question, 0 if fixed(question) else by) for by in range(count)]
