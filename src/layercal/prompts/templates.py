"""Questions -> prompts -> tokens, with the option letters verified per tokenizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from layercal import InputError
from layercal.prompts.control_tokens import Encoder, Render, guarded
from layercal.sources.questions import LETTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = date(2024, 7, 26)  # of chat templates: no result depends on the day; Llama 3's own default


def hendrycks(question: dict, shots: Sequence[dict] = ()) -> str:
    """Prompt of Hendrycks et al. 2021 (MMLU), zero- or k-shot.

    Parameters
    ----------
    question : dict
        A row of the question table.
    shots : sequence of dict
        Rows that are shown before it with their answers.
    """
    header = "The following are multiple choice questions (with answers) about"

    def block(row: dict) -> str:
        return f"{row['question']}\n{_options(row, '. ')}Answer:"

    return _few_shot(f"{header} {_subject(question)}.", block, question, shots)


def joshi(question: dict, shots: Sequence[dict] = ()) -> str:
    """Prompt of Joshi et al. 2025; parameters as in :func:`hendrycks`."""
    header = (
        "Following are some multiple choice questions. You should directly answer the question by "
        "choosing the correct option."
    )

    def block(row: dict) -> str:
        return f"Question: {row['question']}\n{_options(row, ': ')}Answer:"

    return _few_shot(header, block, question, shots)


def _few_shot(
    header: str, block: Callable[[dict], str], question: dict, shots: Sequence[dict]
) -> str:
    answered = [f"{block(shot)} {LETTERS[shot['answer']]}" for shot in shots]
    return "\n\n".join([header, *answered, block(question)])


def _options(row: dict, mark: str) -> str:
    pairs = zip(LETTERS, row["choices"], strict=False)
    return "".join(f"{letter}{mark}{choice}\n" for letter, choice in pairs)


def _subject(row: dict) -> str:
    return row["subject"].replace("_", " ")


TEMPLATES = {"hendrycks": hendrycks, "joshi": joshi}


@dataclass
class Template:
    """How questions become prompts.

    Attributes
    ----------
    render : function (question, shots) -> str
        What questions spell of the tokenizer's control tokens is marked in it, see
        :mod:`layercal.prompts.control_tokens`.
    lead : str
        What stands between the prompt and the answer letter.
    add_special_tokens : bool
        Whether the tokenizer adds its own, such as BOS, or the prompt already holds them.
    """

    render: Render
    lead: str = " "
    add_special_tokens: bool = True


def template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Find a template: by its name, ``chat``, or the path of a Jinja file.

    Parameters
    ----------
    name : str
        A name in ``TEMPLATES``; ``chat``, the tokenizer's chat template around the ``hendrycks``
        prompt; or a file ``*.j2``.
    tokenizer : transformers.PreTrainedTokenizerBase

    Raises
    ------
    InputError
        If there is no such template, or it cannot be used.
    """
    if name in TEMPLATES:
        return Template(guarded(TEMPLATES[name], tokenizer))
    if name == "chat":
        return _chat(tokenizer)
    if name.endswith(".j2"):
        return Template(guarded(_jinja(Path(name)), tokenizer))
    known = ", ".join([*TEMPLATES, "chat"])
    raise InputError(f"prompt: {name!r} is neither {known} nor the path of a Jinja file *.j2")


def _chat(tokenizer: PreTrainedTokenizerBase) -> Template:
    """A turn of the user, and the assistant's turn up to its answer letter.

    What stands before the letter is taken from the template's own rendering of an answered turn:
    nothing, a space, or an empty block of thoughts.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "prompt: chat: the model's tokenizer has no chat template; use prompt: hendrycks"
        )

    def turns(text: str, *answers: str) -> str:
        messages = [{"role": "user", "content": text}]
        messages += [{"role": "assistant", "content": answer} for answer in answers]
        try:
            rendered = tokenizer.apply_chat_template(
                messages,
                chat_template=_dated(tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=not answers,
            )
            return str(rendered)  # it is text already, which tokens would not be
        except Exception as error:  # whatever the template does
            raise InputError(
                f"prompt: chat: the model's chat template fails with {type(error).__name__}: "
                f"{error}; use prompt: hendrycks"
            ) from error

    mark = "ANSWER-LETTER"
    asked, answered = turns("?"), turns("?", mark)
    before, found, _ = answered.partition(mark)
    if not found or not before.startswith(asked):
        raise InputError(
            "prompt: chat: the model's chat template does not render an answer right after its "
            "generation prompt, so no answer position is known; use prompt: hendrycks"
        )
    opening = before.removeprefix(asked)
    lead = " " * opening.endswith(" ")
    opening = opening.removesuffix(lead)

    def render(question: dict, shots: Sequence[dict]) -> str:
        return turns(hendrycks(question, shots)) + opening

    return Template(guarded(render, tokenizer), lead, add_special_tokens=False)


def _dated(chat: str) -> str:
    """A chat template in which ``strftime_now``, today's date elsewhere, gives ``TODAY``."""
    if "strftime_now" not in chat:
        return chat
    directives = [
        f"%{pad}{letter}" for pad in ("-", "") for letter in "aAbBcdDeFgGHIjmMpRSTuUVwWxXyYZz"
    ]
    written = "".join(f"|replace('{one}', '{TODAY.strftime(one)}')" for one in directives)
    # a macro of its name hides the function; its line end keeps the template's first line a line
    return f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}\n{chat}"


def _jinja(path: Path) -> Render:
    """A user's own template; it gets what a prompt may show, and not the answer."""
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        compiled = environment.from_string(path.read_text("utf-8-sig"))
    except OSError as error:
        raise InputError(f"prompt: {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"prompt: {path}: {error}; save it as UTF-8") from error
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"prompt: {path}, line {error.lineno}: {error.message}") from error

    def shown(row: dict) -> dict:
        return {
            "subject": _subject(row),
            "question": row["question"],
            "choices": row["choices"],
            "letters": list(LETTERS[: len(row["choices"])]),
        }

    def render(question: dict, shots: Sequence[dict]) -> str:
        answered = [{**shown(shot), "answer": LETTERS[shot["answer"]]} for shot in shots]
        try:
            text = compiled.render(**shown(question), shots=answered)
        except Exception as error:  # whatever the template does
            raise InputError(
                f"prompt: {path}: {question['question_id']} cannot be rendered: {error}; a "
                "template has subject, question, choices, letters and shots (each of these with "
                "answer too)"
            ) from error
        if not text or text[-1].isspace():
            raise InputError(
                f"prompt: {path}: the prompt of {question['question_id']} ends in "
                f"{text[-20:]!r}; it must end right before the space and letter of the answer"
            )
        return text

    return render


def choose_shots(rows: Sequence[dict], pool: Sequence[dict], k: int) -> list[list[dict]]:
    """Choose shots for each question: the first k of its subject and language in the pool.

    Parameters
    ----------
    rows, pool : sequence of dict
        Rows of the question table; no question is shown a copy of itself.
    k : int

    Returns
    -------
    list of list of dict
        Fewer than k where the subject has no more.

    Raises
    ------
    InputError
        If a question has none at all.
    """
    alike = defaultdict(list)
    for row in pool:
        alike[row["language"], row["subject"]].append(row)
    chosen = []
    for row in rows:
        others = alike[row["language"], row["subject"]]
        found = list(islice((o for o in others if o["cluster"] != row["cluster"]), k))
        if k and not found:
            raise InputError(
                f"shots: {k}: there is no other question of the subject {row['subject']!r} to show "
                f"before {row['question_id']}; use shots: 0, or give questions of split dev"
            )
        chosen.append(found)
    return chosen


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    n_options: list[int],
    lead: str = " ",
    add_special_tokens: bool = True,
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokenize prompts and resolve the option letters, for every prompt.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    prompts : list of str
        Each ends where the answer letter, after the lead, would follow.
    n_options : list of int
        Options of each.
    lead, add_special_tokens
        As in :class:`Template`.

    Returns
    -------
    input_ids, option_ids : list of list of int
        Of each prompt; the token of each option letter.

    Raises
    ------
    InputError
        Unless lead and letter append exactly one token each to every prompt, distinct ones and
        always the same, leaving the prompt's own tokens unchanged.
    """
    letters, tokens = LETTERS[: max(n_options)], Encoder(tokenizer, add_special_tokens)
    input_ids = tokens(prompts)
    found: set[tuple[int, ...]] = set()
    extended = {letter: tokens([f"{p}{lead}{letter}" for p in prompts]) for letter in letters}
    for row, ids in enumerate(input_ids):
        added = {letter: extended[letter][row] for letter in letters}
        for letter, longer in added.items():
            if longer[:-1] != ids:
                pieces = tokenizer.convert_ids_to_tokens(longer[-3:])
                raise InputError(
                    f"option letter {letter!r}: appending it to a prompt does not add exactly one "
                    f"token (the prompt then ends in {pieces}); layercal reads one token per "
                    "option, so this tokenizer cannot be used with this prompt"
                )
        found.add(tuple(longer[-1] for longer in added.values()))
    if len(found) != 1 or len(set(next(iter(found)))) != len(letters):
        raise InputError(
            f"the option letters do not resolve to {len(letters)} distinct tokens that are the "
            f"same after every prompt: found {sorted(found)}"
        )
    option_ids = found.pop()
    return input_ids, [list(option_ids[:count]) for count in n_options]
