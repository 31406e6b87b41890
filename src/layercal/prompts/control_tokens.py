"""Prompts in which what a question says is text, even where it spells a control token.

``<s>`` in an option is three characters about HTML; as a control token it would begin a new
document. The control tokens that a template itself writes stay what they are. To tell the two
apart until the tokenizer has run, those in questions stand between noncharacters, which Unicode
keeps for uses such as this one.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

from tokenizers import AddedToken

from layercal import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE, STAND_IN = "\ufdd0", "\ufdd1", "\ufdd2"
MARKED = re.compile(f"({OPEN}[^{CLOSE}]*{CLOSE})")
Render = Callable[[dict, Sequence[dict]], str]


def unmarked(prompt: str) -> str:
    """Return a prompt as it reads, without marks."""
    return prompt.replace(OPEN, "").replace(CLOSE, "")


def guarded(render: Render, tokenizer: PreTrainedTokenizerBase) -> Render:
    """Let a template mark the control tokens that its questions spell.

    Parameters
    ----------
    render : function (question, shots) -> str
    tokenizer : transformers.PreTrainedTokenizerBase

    Returns
    -------
    function (question, shots) -> str
        Raises :class:`InputError` for a question whose text the template changes, so that the marks
        would not stand where they belong.
    """
    control = _pattern(_control_tokens(tokenizer))

    def marked(row: dict) -> dict:
        def mark(text: str) -> str:
            return control.sub(f"{OPEN}\\g<0>{CLOSE}", text)

        choices = [mark(choice) for choice in row["choices"]]
        shown = {"question": mark(row["question"]), "subject": mark(row["subject"])}
        return {**row, **shown, "choices": choices}

    def guarded_render(question: dict, shots: Sequence[dict]) -> str:
        rows = [marked(row) for row in (question, *shots)]
        text = render(rows[0], rows[1:])
        if rows != [question, *shots] and unmarked(text) != render(question, shots):
            said = [part for row in rows for part in (row["subject"], row["question"])]
            said += [choice for row in rows for choice in row["choices"]]
            spelled = sorted({found[1:-1] for part in said for found in MARKED.findall(part)})
            raise InputError(
                f"{question['question_id']}: its text or that of its shots spells {spelled}, "
                "control tokens of this model, which the template changes or which stand beside "
                f"characters U+{ord(OPEN):X} or U+{ord(CLOSE):X}; leave the question out"
            )
        return text

    return guarded_render


class Encoder:
    """A tokenizer that takes marked control tokens for text.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    add_special_tokens : bool
        Whether it adds its own, such as BOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool):
        self.tokenizer, self.adds = tokenizer, {"add_special_tokens": add_special_tokens}
        self.control = _control_tokens(tokenizer)

    def __call__(self, prompts: list[str]) -> list[list[int]]:
        """Tokenize prompts.

        Raises
        ------
        InputError
            If the tokenizer makes a control token of what is marked as text.
        """
        found = self.tokenizer([unmarked(prompt) for prompt in prompts], **self.adds)["input_ids"]
        return [
            self._as_text(prompt) if OPEN in prompt else list(ids)
            for prompt, ids in zip(prompts, found, strict=True)
        ]

    def _as_text(self, prompt: str) -> list[int]:
        """Tokens of a prompt whose own control tokens alone are matched: by stand-ins for them."""
        tokenizer, stand_ins = self._disguised
        pattern, places = _pattern(self.control), list(self.control)
        written = 0

        def disguise(match: re.Match) -> str:
            nonlocal written
            written += 1
            return _stand_in(places.index(match[0]))

        parts = [
            part[1:-1] if part.startswith(OPEN) else pattern.sub(disguise, part)
            for part in MARKED.split(prompt)
        ]
        read = tokenizer("".join(parts), split_special_tokens=True, **self.adds)["input_ids"]
        ids = [stand_ins.get(one, one) for one in read]
        control = set(_ids(self.tokenizer, places))
        added = sum(one in control for one in self.tokenizer("", **self.adds)["input_ids"])
        if sum(one in control for one in ids) != written + added:
            spelled = next(MARKED.finditer(prompt))
            around = unmarked(prompt[max(0, spelled.start() - 60) : spelled.end() + 60])
            raise InputError(
                f"{spelled[0][1:-1]!r} in a question's text becomes a control token, and this "
                f"tokenizer has no way to read it as text: ...{around!r}...; leave the question out"
            )
        return ids

    @cached_property
    def _disguised(self) -> tuple[PreTrainedTokenizerBase, dict[int, int]]:
        """A tokenizer that matches stand-ins too, and what each stands for."""
        tokenizer = copy.deepcopy(self.tokenizer)
        made = [
            AddedToken(
                _stand_in(place),
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=False,  # matched even where special tokens are split
            )
            for place, token in enumerate(self.control.values())
        ]
        tokenizer.add_tokens(made)
        ids = _ids(tokenizer, [token.content for token in made])
        return tokenizer, dict(zip(ids, _ids(tokenizer, list(self.control)), strict=True))


def _ids(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> list[int]:
    return cast("list[int]", tokenizer.convert_tokens_to_ids(tokens))  # of one it gives a number


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, AddedToken]:
    """What the tokenizer takes for control tokens; other added tokens are words of its texts."""
    found = (token for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {token.content: token for token in found}


def _pattern(control: dict[str, AddedToken]) -> re.Pattern:
    longest_first = sorted(filter(None, control), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) is nowhere


def _stand_in(place: int) -> str:
    return f"{STAND_IN}{place}{STAND_IN}"
