"""Questions -> prompts -> tokens, with the option letters verified per tokenizer."""

from __future__ import annotations

from layercal import InputError
from layercal.questions import LETTERS


def hendrycks(question: dict) -> str:
    """Zero-shot prompt of Hendrycks et al. 2021 (MMLU).

    Parameters
    ----------
    question : dict
        A row of the question table.
    """
    subject = question["subject"].replace("_", " ")
    options = "".join(
        f"{letter}. {choice}\n"
        for letter, choice in zip(LETTERS, question["choices"], strict=False)
    )
    return (
        f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        f"{question['question']}\n{options}Answer:"
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


TEMPLATES = {"hendrycks": hendrycks}


def tokenize(
    tokenizer, prompts: list[str], n_options: list[int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokenize prompts and resolve the option letters, for every prompt.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    prompts : list of str
        Each ends where the answer letter, preceded by a space, would follow.
    n_options : list of int
        Options of each.

    Returns
    -------
    input_ids, option_ids : list of list of int
        Of each prompt; the token of each option letter.

    Raises
    ------
    InputError
        Unless " A", " B" .. append exactly one token each to every prompt, distinct ones and always
        the same, leaving the prompt's own tokens unchanged.
    """
    letters = LETTERS[: max(n_options)]
    input_ids = [list(ids) for ids in tokenizer(prompts)["input_ids"]]
    found: set[tuple[int, ...]] = set()
    extended = {
        letter: tokenizer([f"{p} {letter}" for p in prompts])["input_ids"] for letter in letters
    }
    for row, ids in enumerate(input_ids):
        added = {letter: list(extended[letter][row]) for letter in letters}
        for letter, tokens in added.items():
            if tokens[:-1] != ids:
                pieces = tokenizer.convert_ids_to_tokens(tokens[-3:])
                raise InputError(
                    f"option letter {letter!r}: appending it to a prompt does not add exactly one "
                    f"token (the prompt then ends in {pieces}); layercal reads one token per "
                    "option, so this tokenizer cannot be used with this prompt"
                )
        found.add(tuple(tokens[-1] for tokens in added.values()))
    if len(found) != 1 or len(set(next(iter(found)))) != len(letters):
        raise InputError(
            f"the option letters do not resolve to {len(letters)} distinct tokens that are the "
            f"same after every prompt: found {sorted(found)}"
        )
    option_ids = found.pop()
    return input_ids, [list(option_ids[:count]) for count in n_options]
