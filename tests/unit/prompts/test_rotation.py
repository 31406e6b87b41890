"""Rotations, and the questions whose options keep their order."""

import pytest

from layercal.prompts import rotation


def asked(*choices, **fields):
    return {"question_id": "q", "choices": list(choices), "answer": 1, **fields}


BY_PLACE = [
    "All of the above",
    "None of the above.",
    "none of the above are true",
    "All of these above",
    "Both of the above",
    "Alles das oben Genannte",
    "Keine der oben genannten",
    "Ninguna de las anteriores",
    "Todo lo anterior",
    "Tout ce qui précède",
    "Nessuna delle precedenti",
    "Nenhuma das acima",
    "Tudo o que precede",
    "ऊपर के सभी",
    "उपरोक्त में से कोई नहीं",
    "ทั้งหมดข้างต้น",
]
BY_LETTER = [
    "both A and B",
    "Both (a) and (b)",
    "neither A nor B",
    "A and C only",
    "A, B and C",
    "A & B",
    "only A",
    "B only",
    "All of (a), (b) and (c) will be true.",
    "sowohl A als auch B",
    "ni a ni B",
    "les deux, A et B",
    "Tutti i punti (a), (b) e (c) saranno veri.",
    "Todos os itens (a), (b) e (c) serão verdadeiros.",
    "a और B दोनों",
    "ทั้ง A และ B",
]


@pytest.mark.parametrize("choice", [*BY_PLACE, *BY_LETTER])
def test_options_that_name_others_are_fixed(choice):
    question = asked("one", "two", "three", choice)
    assert rotation.fixed(question) == f"option D refers to others by place or letter: {choice}"
    assert rotation.orders(question, 4) == [question] * 4


@pytest.mark.parametrize(
    "choice",
    [
        "None of these options are correct",
        "All of these",
        "The POP would choose equality above liberty",
        "all the above-ground parts",
        "both below zero degrees",
        "Vitamins A and C",
        "A",
        "a bat and a bird",
        "I and II only",
        "E and F",
        "B cells",
        "abc",
        "c",
    ],
)
def test_other_options_are_not(choice):
    question = asked("one", "two", "three", choice)
    assert rotation.fixed(question) == ""
    turned = rotation.orders(question, 4)
    assert [row["choices"][0] for row in turned] == ["one", "two", "three", choice]
    assert [row["choices"][row["answer"]] for row in turned] == ["two"] * 4


def test_equal_options_are_fixed():
    question = asked("x", "y", "z", "y")
    assert rotation.fixed(question) == "options B and D are equal"
    assert rotation.orders(question, 4) == [question] * 4
