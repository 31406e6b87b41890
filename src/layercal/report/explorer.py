"""An interactive page of one study: every layer's reliability, answer flow and question paths.

All numbers are computed here, by the library, on all questions; the page only picks and draws them.
Only the questions themselves are thinned, by a stable hash, where they would make it too large.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jinja2
import numpy as np
import pandas as pd
import vl_convert
from jinja2.utils import htmlsafe_json_dumps
from scipy.special import softmax

from layercal import InputError, results
from layercal.metrics import calibration, readings
from layercal.report import charts
from layercal.sources.questions import LETTERS, hash_order
from layercal.steering.steered import MODES

LIMIT = 4_800_000  # bytes of a page
COLUMNS = ("ids", "probability", "chosen")  # one entry a question
PREVIOUS, UNSTEERED = "the layer before", "the same reading, unsteered"
# what becomes of an answer: by whether it was right, is right, and is the same option
MOVES = ["stayed right", "became right", "became wrong", "wrong, another option", "stayed wrong"]


@dataclass(kw_only=True)
class Steps:
    """Readings of the same questions at every step of the page's sliders.

    Attributes
    ----------
    label : str
    logits : array, shape (directions, layers, alphas, n, n_options)
        -inf where a question has no such option.
    answer : array of int, shape (n,)
    groups : dict of array of bool, shape (n,)
    intervals : DataFrame
        ``group``, ``metric``, ``value``, ``ci_low``, ``ci_high``, ``null_high``, in the order of
        the steps; groups may be missing.
    references : dict of array of int, shape of logits without its last axis
        What answers are compared with: name -> option chosen there.
    directions, layers, alphas : sequence
    n_bins : int
    """

    label: str
    logits: np.ndarray
    answer: np.ndarray
    groups: dict[str, np.ndarray]
    intervals: pd.DataFrame
    references: dict[str, np.ndarray]
    directions: Sequence[str]
    layers: Sequence[int]
    alphas: Sequence[float]
    n_bins: int

    def plain(self) -> dict:
        """Everything the page draws, as lists; one entry a step, scales moving fastest."""
        n, k = self.logits.shape[-2:]
        logits = self.logits.reshape(-1, n, k)
        confidence, chosen = softmax(logits.astype(float), -1).max(-1), logits.argmax(-1)
        correct = chosen == self.answer
        before = {name: other.reshape(-1, n) for name, other in self.references.items()}
        groups = {}
        for name, rows in self.groups.items():
            pair = confidence[:, rows], correct[:, rows]
            groups[name] = {
                "numbers": self._numbers(name, *pair),
                "bins": _bins(*pair, self.n_bins),
                "flow": [flow(other[:, rows], chosen[:, rows], k) for other in before.values()],
                "moves": [
                    moves(other[:, rows], chosen[:, rows], self.answer[rows])
                    for other in before.values()
                ],
            }
        return {
            "label": self.label,
            "directions": list(self.directions),
            "layers": [int(layer) for layer in self.layers],
            "alphas": [float(alpha) for alpha in self.alphas],
            "references": list(before),
            "groups": groups,
        }

    def _numbers(self, group: str, confidence: np.ndarray, correct: np.ndarray) -> dict:
        """Value, interval and null floor of each metric, with None for what was not computed."""
        values = {
            "accuracy": correct.mean(-1),
            "confidence": confidence.mean(-1),
            "ece": calibration.ece(confidence, correct, self.n_bins),
        }
        table = self.intervals[self.intervals["group"] == group]
        by_metric = {}
        for metric, value in values.items():
            rows = table[table["metric"] == metric]
            bounds = np.full((len(value), 3), np.nan)
            if len(rows):
                if len(rows) != len(value) or not np.allclose(rows["value"], value, atol=1e-6):
                    raise InputError(
                        f"{self.label}: the readings give another {metric} of {group} than the "
                        "table of metrics does, so they are of different runs; run both again"
                    )
                bounds = rows[["ci_low", "ci_high", "null_high"]].to_numpy(float)
            by_metric[metric] = _plain(np.column_stack([value, bounds]), 9)
        return by_metric


def _plain(values: np.ndarray, digits: int) -> list:
    """Rounded nested lists, None where NaN."""
    rounded = np.round(values, digits).astype(object)
    rounded[np.isnan(values)] = None
    return rounded.tolist()


def _bins(confidence: np.ndarray, correct: np.ndarray, n_bins: int) -> dict[str, list]:
    table = calibration.bin_table(confidence, correct, n_bins)
    return {
        "count": table.count.astype(int).tolist(),
        "confidence": _plain(table.confidence, 4),
        "accuracy": _plain(table.accuracy, 4),
    }


def flow(before: np.ndarray, after: np.ndarray, n_options: int) -> list[list[int]]:
    """Count questions by the option chosen before and after.

    Parameters
    ----------
    before, after : array of int, shape (steps, n)
    n_options : int

    Returns
    -------
    list of list of int
        For each step ``n_options ** 2`` counts; that of option a to option b stands at
        ``a * n_options + b``.
    """
    cells = n_options**2
    return [np.bincount(step, minlength=cells).tolist() for step in before * n_options + after]


def moves(before: np.ndarray, after: np.ndarray, answer: np.ndarray) -> list[list[int]]:
    """Count questions by what became of their answer, in the order of ``MOVES``.

    Parameters
    ----------
    before, after : array of int, shape (steps, n)
    answer : array of int, shape (n,)
    """
    was, now, same = before == answer, after == answer, before == after
    kinds = [was & now, ~was & now, was & ~now, ~was & ~now & ~same, ~was & same]
    return np.stack([kind.sum(-1) for kind in kinds], -1).tolist()


def lens_steps(
    read: readings.Readings, groups: dict, metrics: pd.DataFrame, phase: dict, n_bins: int
) -> Steps:
    """Readings through the logit lens, a step a layer.

    Parameters
    ----------
    read : Readings
        ``logits`` of shape (L + 1, n, n_options).
    groups : dict of array of bool, shape (n,)
    metrics : DataFrame
        ``metrics.parquet``.
    phase : dict
        ``phase.json``.
    n_bins : int
    """
    chosen, peak = read.logits.argmax(-1), phase["peak_layer"]
    through = results.select(metrics, ["accuracy", "confidence", "ece"], list(groups))
    return Steps(
        label="logit lens",
        logits=read.logits[None, :, None],
        answer=read.answer,
        groups=groups,
        intervals=through.sort_values("layer", kind="stable"),
        references={
            PREVIOUS: chosen[[0, *range(len(chosen) - 1)]],
            f"layer {peak}, the peak of ECE": np.broadcast_to(chosen[peak], chosen.shape),
        },
        directions=[""],
        layers=range(len(chosen)),
        alphas=[0],
        n_bins=n_bins,
    )


def steered_steps(
    logits: np.ndarray, answer: np.ndarray, groups: dict, sweep: pd.DataFrame, n_bins: int
) -> Steps:
    """Readings of held-out questions under steering in one mode.

    Parameters
    ----------
    logits : array, shape (directions, layers, alphas, n, n_options)
    answer : array of int, shape (n,)
    groups : dict of array of bool, shape (n,)
    sweep : DataFrame
        Rows of ``sweep.parquet`` of that mode and those directions.
    n_bins : int
    """
    alphas = list(sweep["alpha"].unique())
    chosen = logits.argmax(-1)
    unsteered = chosen[:, :, [alphas.index(0)]]
    return Steps(
        label=MODES[sweep["mode"].iloc[0]].label,
        logits=logits,
        answer=answer,
        groups=groups,
        intervals=sweep.assign(group="all", null_high=np.nan),
        references={UNSTEERED: np.broadcast_to(unsteered, chosen.shape)},
        directions=list(sweep["direction"].unique()),
        layers=list(sweep["layer"].unique()),
        alphas=alphas,
        n_bins=n_bins,
    )


def described(groups: dict[str, np.ndarray], metrics: pd.DataFrame) -> list[dict]:
    """Name and size of each group to pick from, and whether it was large enough to measure."""
    first = metrics[metrics["metric"] == "ece"].drop_duplicates("group").set_index("group")
    return [
        {
            "name": name,
            "label": name.replace(":", ": ") if ":" in name else "all questions",
            "n": int(rows.sum()),
            "measured": bool(first["value"].notna()[name]),
        }
        for name, rows in groups.items()
    ]


def picked_groups(prompts: pd.DataFrame) -> dict[str, np.ndarray]:
    """Groups of a page: all, categories, languages; subjects are too many and too small."""
    members = readings.groups(prompts)
    return {str(group): rows for group, rows in members.items() if group.kind != "subject"}


def pair(
    model: str,
    questions: str,
    prompts: pd.DataFrame,
    options: pd.DataFrame,
    metrics: pd.DataFrame,
    phase: dict,
    sweep: pd.DataFrame,
    steered: dict[str, np.ndarray],
) -> dict:
    """All of one model on one question set, as plain lists.

    Parameters
    ----------
    model, questions : str
    prompts, options, metrics, sweep : DataFrame
        The tables of these names; of ``sweep`` the rows of the directions in ``steered``.
    phase : dict
        ``phase.json``.
    steered : dict of array, shape (directions, layers, alphas, n, n_options)
        Logits of held-out questions, one entry a mode.

    Raises
    ------
    InputError
        If the tables are of different runs.
    """
    options = results.joined(options, prompts, f"{model} on {questions}: options.parquet")
    read = readings.from_options(options)[phase["order"]]
    asked = prompts.drop_duplicates("question_id")
    n_bins = results.primary_bins(metrics)
    listed = described(picked_groups(asked), metrics)
    measured = [group["name"] for group in listed if group["measured"]]

    def groups(table: pd.DataFrame) -> dict[str, np.ndarray]:
        members = picked_groups(table)
        return {name: members[name] for name in measured}

    steps = [lens_steps(read, groups(asked), metrics, phase, n_bins)]
    for mode, logits in steered.items():
        of_mode = sweep[sweep["mode"] == mode]
        steps.append(
            steered_steps(logits, prompts["answer"].to_numpy(), groups(prompts), of_mode, n_bins)
        )
    probability = np.moveaxis(np.exp(read.log_probability), 0, 1)  # n, layers, options
    return {
        "model": model,
        "questions": questions,
        "reason": phase["reason"],
        "peak": phase["peak_layer"],
        "letters": LETTERS[: read.logits.shape[-1]],
        "n_bins": n_bins,
        "groups": listed,
        "readings": [step.plain() for step in steps],
        "ids": list(asked["question_id"]),
        "probability": np.round(probability * 1000).astype(int).tolist(),
        "chosen": ["".join(LETTERS[i] for i in options) for options in read.logits.argmax(-1).T],
    }


def ask(table: pd.DataFrame) -> dict[str, dict]:
    """Text of each question by its id, from a question table."""
    columns = ["subject", "category", "question", "choices", "answer"]
    rows = table.set_index("question_id")[columns]
    rows = rows.assign(choices=rows["choices"].map(list), answer=rows["answer"].map(int))
    return dict(zip(rows.index, rows.to_dict("records"), strict=True))


def thinned(pairs: list[dict], texts: dict[str, dict], budget: int, seed: int = 0) -> list[dict]:
    """Keep as many questions of each set as fit into a number of bytes, by a stable hash.

    Parameters
    ----------
    pairs : list of dict
        From :func:`pair`.
    texts : dict of dict
        :func:`ask` of each question set.
    budget, seed : int

    Returns
    -------
    list of dict
        Pairs with ``asked``, their number of questions, and the columns of those kept only.

    Raises
    ------
    InputError
        If a question table lacks a question.
    """
    orders, costs = [], []
    priced: set[str] = set()
    for entry in pairs:
        text = texts[entry["questions"]]
        lacking = next((name for name in entry["ids"] if name not in text), None)
        if lacking is not None:
            raise InputError(
                f"{entry['questions']}: the question table lacks {lacking!r}, which was asked; "
                "fetch and extract again"
            )
        order = hash_order(entry["ids"], seed)
        orders.append(order)
        held = [[entry[name][i] for name in COLUMNS] for i in order]
        if entry["questions"] not in priced:  # the text stands once, whatever the number of models
            held = [[*columns, columns[0], text[columns[0]]] for columns in held]
        priced.add(entry["questions"])
        costs.append([_size(columns) for columns in held])
    longest = max(map(len, costs))
    total = np.sum([np.pad(cost, (0, longest - len(cost))) for cost in costs], 0).cumsum()
    keep = int((total <= budget).sum())
    kept = []
    for entry, order in zip(pairs, orders, strict=True):
        rows = sorted(order[:keep])
        columns = {name: [entry[name][i] for i in rows] for name in COLUMNS}
        kept.append({**entry, **columns, "asked": len(entry["ids"])})
    return kept


strict = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
dump = partial(htmlsafe_json_dumps, dumps=strict)


def _size(value: object) -> int:
    return len(dump(value).encode())


def page(pairs: list[dict], texts: dict[str, dict], template: str, script: str) -> str:
    """Render the page, complete in one file.

    Parameters
    ----------
    pairs : list of dict
        From :func:`pair`.
    texts : dict of dict
        :func:`ask` of each question set.
    template, script : str
        Jinja template of the page, and the JavaScript that drives its charts.
    """
    specs = charts.specs()
    library = vl_convert.javascript_bundle()  # type: ignore[call-arg] # its stub asks for more
    summary = [{k: v for k, v in entry.items() if k not in COLUMNS} for entry in pairs]
    budget = LIMIT - len(library) - _size([summary, specs]) - len(template) - len(script)
    kept = thinned(pairs, texts, budget)
    shown: dict[str, set[str]] = {entry["questions"]: set() for entry in kept}
    for entry in kept:
        shown[entry["questions"]].update(entry["ids"])
    asked = {
        name: {key: text for key, text in texts[name].items() if key in ids}
        for name, ids in shown.items()
    }
    data = {"pairs": kept, "texts": asked, "specs": specs, "moves": MOVES}
    environment = jinja2.Environment(autoescape=True)
    return environment.from_string(template).render(data=dump(data), library=library, script=script)
