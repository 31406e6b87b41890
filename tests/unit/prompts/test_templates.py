"""Prompts, shots and option letters: texts as published, tokens as the tokenizer has them."""

import pytest
from conftest import word_tokenizer
from tokenizers.processors import TemplateProcessing

from layercal import InputError
from layercal.prompts import templates


def question(name="q", **fields):
    row = {"question_id": name, "cluster": name, "language": "en", "subject": "high_school_physics"}
    return {**row, "question": "Why?", "choices": list("wxyz"), "answer": 1, **fields}


SHOT = question("s", question="How?", choices=["u", "v"], answer=0)


def test_hendrycks_prompt():
    header = "The following are multiple choice questions (with answers) about high school physics."
    asked = "Why?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert templates.hendrycks(question()) == f"{header}\n\n{asked}"
    shots = [SHOT, question("t")]
    assert templates.hendrycks(question(), shots) == (
        f"{header}\n\nHow?\nA. u\nB. v\nAnswer: A\n\n{asked} B\n\n{asked}"
    )


def test_joshi_prompt():
    header = (
        "Following are some multiple choice questions. You should directly answer the question by "
        "choosing the correct option."
    )
    asked = "Question: Why?\nA: w\nB: x\nC: y\nD: z\nAnswer:"
    assert templates.joshi(question()) == f"{header}\n\n{asked}"
    assert templates.joshi(question(), [SHOT]) == (
        f"{header}\n\nQuestion: How?\nA: u\nB: v\nAnswer: A\n\n{asked}"
    )


def test_shots_are_other_questions_of_the_subject():
    pool = [question(f"p/{i}", cluster=f"p/{i % 4}") for i in range(5)]
    pool += [question("th", language="th"), question("law", subject="law")]
    chosen = templates.choose_shots([pool[0], pool[3], question()], pool, 3)
    names = [[shot["question_id"] for shot in some] for some in chosen]
    assert names == [["p/1", "p/2", "p/3"], ["p/0", "p/1", "p/2"], ["p/0", "p/1", "p/2"]]
    assert len(templates.choose_shots([pool[0]], pool, 9)[0]) == 3  # not its copy, p/4
    assert templates.choose_shots([pool[5]], pool, 0) == [[]]
    with pytest.raises(InputError, match="no other question of the subject 'law' to show before"):
        templates.choose_shots([pool[6]], pool, 2)


CHATML = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
INSTRUCT = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
THINKING = CHATML.replace(
    "{{ m.content", "{{ m.role == 'assistant' and '<t>\n</t>\n' or '' }}{{ m.content"
)
SILENT = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
OTHER = "{% if add_generation_prompt %}>{% endif %}{{ messages[-1].content }}"


@pytest.mark.parametrize(
    ("chat", "start", "end", "letter"),
    [
        (CHATML, "<user>\nThe following", "Answer:</s>\n<assistant>\n", "A"),
        (INSTRUCT, "<s>[INST] The following", "Answer: [/INST]", "ĠA"),
        (THINKING, "<user>\nThe following", "</s>\n<assistant>\n<t>\n</t>\n", "A"),
    ],
)
def test_chat_template_up_to_the_answer_letter(chat, start, end, letter):
    tokenizer = word_tokenizer(" ABCD")
    tokenizer.chat_template = chat
    found = templates.template("chat", tokenizer)
    text = found.render(question(), [SHOT])
    assert templates.hendrycks(question(), [SHOT]) in text
    assert text.startswith(start) and text.endswith(end)
    _, option_ids = templates.tokenize(tokenizer, [text], [4], found.lead, found.add_special_tokens)
    assert tokenizer.convert_ids_to_tokens(option_ids[0])[0] == letter


@pytest.mark.parametrize(
    ("chat", "message"),
    [(None, "has no chat template"), (SILENT, "no answer position"), (OTHER, "no answer position")],
)
def test_chat_templates_that_cannot_be_used(chat, message):
    tokenizer = word_tokenizer(" ABCD")
    tokenizer.chat_template = chat
    with pytest.raises(InputError, match=message):
        templates.template("chat", tokenizer)


RAISING = "{{ raise_exception('Roles must alternate') }}"
UNDEFINED = "{{ messages[0].content.parts[0].text }}"


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (RAISING, "template fails with TemplateError: Roles must alternate; use prompt: hendrycks"),
        (UNDEFINED, "template fails with UndefinedError: 'str object' has no attribute 'parts'"),
        ("{% for %}", "template fails with TemplateSyntaxError: Expected an expression"),
        ({"tool_use": CHATML}, "template fails with ValueError: .*no default specified"),
    ],
)
def test_chat_templates_that_fail_are_quoted(chat, message):
    tokenizer = word_tokenizer(" ABCD")
    tokenizer.chat_template = chat
    with pytest.raises(InputError, match=f"prompt: chat: the model's chat {message}"):
        templates.template("chat", tokenizer)


DATED = (
    "  \n{%- macro today() %}{{ strftime_now('%A %-d %B %Y') }}{% endmacro %}"
    "{% if strftime_now is defined and not date_string is defined %}"
    "{% set date_string = strftime_now(format='%d %b %Y') %}{% endif %}"
    "{{ date_string }}, {{ today() }}, {{ strftime_now('%Y-%m-%d') }}\n"
)


def test_prompts_do_not_depend_on_the_day():
    """A template that asks for today's date gets the same one every day."""
    tokenizer = word_tokenizer(" ABCD")
    tokenizer.chat_template = DATED + CHATML
    with_date = templates.template("chat", tokenizer).render(question(), [])
    tokenizer.chat_template = CHATML
    without = templates.template("chat", tokenizer).render(question(), [])
    assert with_date == f"26 Jul 2024, Friday 26 July 2024, 2024-07-26\n{without}"


def test_one_bos_and_no_more():
    """The tokenizer adds it to plain prompts; a chat template brings its own."""
    tokenizer = word_tokenizer(" ABCD")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = INSTRUCT
    for name in ("hendrycks", "joshi", "chat"):
        found = templates.template(name, tokenizer)
        text = found.render(question(), [])
        (ids,), _ = templates.tokenize(tokenizer, [text], [4], found.lead, found.add_special_tokens)
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


MINE = """{% for shot in shots %}{{ shot.question }} {{ shot.answer }}
{% endfor %}{{ subject }}: {{ question }}
{% for letter in letters %}({{ letter }}) {{ choices[loop.index0] }} {% endfor %}
->
"""


def test_own_template(tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text(MINE)
    found = templates.template(str(path), word_tokenizer())
    assert found.render(question(), [SHOT]) == (
        "How? A\nhigh school physics: Why?\n(A) w (B) x (C) y (D) z \n->"
    )
    assert (found.lead, found.add_special_tokens) == (" ", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ question }}\n{% for %}", "mine.j2, line 2: Expected an expression"),
        ("{{ answer }}:", "q cannot be rendered: 'answer' is undefined; a template has subject"),
        ("{{ question.__class__.__mro__ }}:", "q cannot be rendered: access to attribute"),
        ("{{ question / 2 }}:", "q cannot be rendered: unsupported operand"),
        ("{{ question }} ", r"the prompt of q ends in 'Why\? '; it must end right before"),
        ("", "the prompt of q ends in ''"),
    ],
)
def test_own_template_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "mine.j2"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        templates.template(str(path), word_tokenizer()).render(question(), [])


def test_unknown_templates_are_refused(tmp_path):
    with pytest.raises(InputError, match="'mine' is neither hendrycks, joshi, chat nor the path"):
        templates.template("mine", None)
    (tmp_path / "mine.j2").write_bytes("{{ question }} – answer:".encode("cp1252"))
    with pytest.raises(InputError, match=r"mine\.j2: .*byte 0x96.*; save it as UTF-8"):
        templates.template(str(tmp_path / "mine.j2"), None)
    with pytest.raises(InputError, match=r"none\.j2: cannot be read: No such file"):
        templates.template(str(tmp_path / "none.j2"), None)


def test_option_letters_are_single_tokens():
    tokenizer = word_tokenizer(" ABCD")
    input_ids, option_ids = templates.tokenize(tokenizer, ["One Answer:", "Two Answer:"], [4, 2])
    assert tokenizer.convert_ids_to_tokens(option_ids[0]) == ["ĠA", "ĠB", "ĠC", "ĠD"]
    assert option_ids[1] == option_ids[0][:2]
    assert [tokenizer.convert_ids_to_tokens(ids)[:3] for ids in input_ids] == [[*"One"], [*"Two"]]


def test_option_letters_that_are_not_single_tokens_are_refused():
    with pytest.raises(InputError, match=r"option letter 'D'.*exactly one token.*'Ġ', 'D'"):
        templates.tokenize(word_tokenizer(" ABC"), ["Answer:"], [4])
    templates.tokenize(word_tokenizer(" ABC"), ["Answer:"], [3])
