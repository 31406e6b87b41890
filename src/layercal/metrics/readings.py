"""What was read off a model, one array axis a layer or setting, and its table of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import log_softmax, logsumexp
from scipy.stats import binomtest, rankdata
from threadpoolctl import threadpool_limits

from layercal import InputError
from layercal.metrics import calibration, registry, resampling
from layercal.sources.questions import LETTERS

VALUES = ["value", "ci_low", "ci_high", "null_mean", "null_high"]
WHY_NONE = {
    "auroc": "all predictions are right, or all wrong",
    "agree": "no question's options are rotated",
}


@dataclass(frozen=True)
class Group:
    """A part of the questions.

    Attributes
    ----------
    kind : {"all", "category", "subject", "language", "flag"}
    name : str
        Of all questions there is none.
    """

    kind: str = "all"
    name: str = ""

    def __str__(self) -> str:
        return self.kind if self == Group() else f"{self.kind}:{self.name}"

    def columns(self) -> dict[str, str]:
        """The fields as columns of a table, and ``group``, both in one."""
        return {"group": str(self), "group_kind": self.kind, "group_name": self.name}


@dataclass
class Readings:
    """Option logits and what comes with them.

    Attributes
    ----------
    logits : array, shape (..., n, n_options)
        -inf where a question has no such option.
    answer : array of int, shape (n,)
    extra : dict of array, shape (..., n)
        Quantities to average as they are, such as option mass and entropy.
    cluster : array of int, shape (n,), optional
        Questions of one cluster are resampled together; each on its own if left out.
    """

    logits: np.ndarray
    answer: np.ndarray
    extra: dict[str, np.ndarray]
    cluster: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    def __post_init__(self) -> None:
        if not len(self.cluster):
            self.cluster = np.arange(len(self.answer))
        self.log_probability = log_softmax(self.logits.astype(float), -1)
        self.confidence = np.exp(self.log_probability.max(-1))
        self.correct = self.logits.argmax(-1) == self.answer
        self.n_options = (self.logits > -np.inf).sum(-1)

    @property
    def chance(self) -> np.ndarray:
        """Accuracy of guessing, for each question; (..., n)."""
        return 1 / self.n_options

    def take(self, rows: np.ndarray) -> Readings:
        """Keep only some of the questions."""
        extra = {name: value[..., rows] for name, value in self.extra.items()}
        return Readings(self.logits[..., rows, :], self.answer[rows], extra, self.cluster[rows])

    def layer(self, index: int) -> Readings:
        """Reading of one layer."""
        extra = {name: value[index] for name, value in self.extra.items()}
        return Readings(self.logits[index], self.answer, extra, self.cluster)

    def per_question(self) -> dict[str, np.ndarray]:
        """Quantities whose mean over questions is a metric, each of shape (..., n).

        ``nll`` in nats; ``brier`` sums over options (Brier 1950), within [0, 2];
        ``signed_gap`` is confidence minus correctness, positive when overconfident;
        ``predicted_<letter>`` is the share of predictions that name the letter; ``chance`` is the
        accuracy of guessing.
        """
        predicted, letters = self.logits.argmax(-1), LETTERS[: self.logits.shape[-1]]
        right = np.eye(len(letters))[self.answer]
        answers = np.broadcast_to(self.answer[..., None], (*predicted.shape, 1))
        return {
            "accuracy": self.correct.astype(float),
            "chance": self.chance,
            "confidence": self.confidence,
            "signed_gap": self.confidence - self.correct,
            "nll": -np.take_along_axis(self.log_probability, answers, -1)[..., 0],
            "brier": ((np.exp(self.log_probability) - right) ** 2).sum(-1),
            **self.extra,
            **{f"predicted_{letter}": (predicted == i) * 1.0 for i, letter in enumerate(letters)},
        }


def option_columns(options: pd.DataFrame) -> list[str]:
    """Columns of ``options.parquet`` that hold the options' logits, in their order."""
    return [name for name in options.columns if name.startswith("logit_")]


def prompt_logits(options: pd.DataFrame, n: int) -> np.ndarray:
    """Logits of each prompt at every layer, as they were read; (n, L + 1, k).

    Parameters
    ----------
    options : DataFrame
        As :meth:`layercal.results.Run.by_prompt` reads ``options.parquet``.
    n : int
        Number of prompts.
    """
    columns = option_columns(options)
    return options[columns].to_numpy().reshape(n, -1, len(columns))


def from_options(options: pd.DataFrame, cluster: np.ndarray | None = None) -> dict[str, Readings]:
    """Arrays (L + 1, n) from a lens table, questions in the order in which it has them first.

    Parameters
    ----------
    options : DataFrame
        ``options.parquet``: one row a question, rotation of its options, and layer; option mass
        and entropy may be left out.
    cluster : array of int, shape (n,), optional
        Of each question.

    Returns
    -------
    dict of Readings
        ``as-is`` if there is one order only. Of k rotations of k options: ``averaged``, the mean
        over rotations of the probabilities of each option (its letter bias averages out), with the
        share of questions on which all rotations ``agree``, NaN for one that is never rotated; then
        ``rotation-0`` and so on, each as read, by letter.
    """
    layers, rotations = options["layer"].nunique(), options["permutation"].nunique()
    question, ids = pd.factorize(options["question_id"])
    cluster = np.arange(len(ids)) if cluster is None else cluster
    options = options.iloc[np.lexsort((options["layer"], options["permutation"], question))]

    def by_layer(columns: str | list[str]) -> np.ndarray:
        values = options[columns].to_numpy()
        by_question = values.reshape(-1, rotations, layers, *values.shape[1:])
        return np.moveaxis(by_question, 2, 0)  # layers, questions, rotations, ...

    logits = by_layer(option_columns(options))
    answer = by_layer("answer")[0]
    extra = {name: by_layer(name) for name in ("option_mass", "entropy") if name in options}
    by_rotation = [
        Readings(
            logits[:, :, r],
            answer[:, r],
            {name: value[:, :, r] for name, value in extra.items()},
            cluster,
        )
        for r in range(rotations)
    ]
    if rotations == 1:
        return {"as-is": by_rotation[0]}
    # letter j shows option (j + shift) mod k, and so does the answer: back to the options
    shift, k = answer[:, :1] - answer, logits.shape[-1]
    option = (np.arange(k)[:, None] - shift[:, None, :]) % k  # questions, options, rotations
    read = np.stack([rotation.log_probability for rotation in by_rotation], -1)
    log_probability = np.take_along_axis(read, option[None], -2)
    predicted = log_probability.argmax(-2)
    agree = np.where((shift == 0).all(-1), np.nan, (predicted == predicted[..., :1]).all(-1))
    averaged = Readings(
        logits=logsumexp(log_probability, -1) - np.log(rotations),
        answer=answer[:, 0],
        extra={name: value.mean(-1) for name, value in extra.items()} | {"agree": agree},
        cluster=cluster,
    )
    return {
        "averaged": averaged,
        **{f"rotation-{r}": rotation for r, rotation in enumerate(by_rotation)},
    }


def primary(options: pd.DataFrame, prompts: pd.DataFrame) -> Readings:
    """Readings (L + 1, n) of each question in the primary order of its options.

    Parameters
    ----------
    options : DataFrame
        As of :func:`from_options`.
    prompts : DataFrame
        With the ``cluster`` of each question.
    """
    asked = prompts.drop_duplicates("question_id")
    return next(iter(from_options(options, pd.factorize(asked["cluster"])[0]).values()))


def metric_table(
    read: Readings, n_bins: Sequence[int], min_count: Sequence[int], draws: int, seed: int
) -> pd.DataFrame:
    """All metrics with 95 % intervals and, where an error is binned, its null floor.

    Parameters
    ----------
    read : Readings
        ``logits`` of shape (layers, n, n_options).
    n_bins, min_count : sequence of int
        The first number of bins is the primary one, which equal-mass and class-wise errors use.
    draws, seed : int

    Returns
    -------
    DataFrame
        ``layer``, ``metric``, ``value``, ``ci_low``, ``ci_high``, ``null_mean``, ``null_high``
        (95th percentile under perfect calibration), ``n``, ``n_bins`` (0 where not binned),
        ``reason`` (why a value is NaN, else empty). MCE over bins of at least c samples is named
        ``mce`` for c = 1, which has no interval, else ``mce_min<c>``.
    """
    weights = resampling.cluster_weights(read.cluster, draws, seed)
    uniform = resampling.null_uniform(read.cluster, draws, seed)
    rows = []
    for layer in range(len(read.logits)):
        of_layer = read.layer(layer)
        means = of_layer.per_question()
        means["auroc"] = auroc_values(of_layer.confidence, of_layer.correct)
        rows += [{"layer": layer, **row} for row in _mean_rows(means, weights)]
        probability = np.exp(of_layer.log_probability)
        outcomes = None if uniform is None else resampling.draw_outcomes(probability, uniform)
        for name, bins, entry in registry.listed(n_bins, min_count):
            row = {"layer": layer, "metric": name, "n_bins": bins}
            rows.append({**row, **_error(entry, of_layer, weights, bins, outcomes)})
    return pd.DataFrame(rows).assign(n=len(read.answer)).fillna({"reason": ""})


def groups(prompts: pd.DataFrame) -> dict[Group, np.ndarray]:
    """Groups of questions: all of them, each category and each subject.

    Parameters
    ----------
    prompts : DataFrame, n rows
        With ``category``, ``subject``, ``language`` and ``flag``; of several languages, each is a
        group, too. Where questions were reviewed, those that are ``ok`` are a group, those
        ``faulty`` another.

    Returns
    -------
    dict of array of bool, shape (n,)
    """
    members = {Group(): np.ones(len(prompts), bool)}
    kinds = ["category", "subject"] + ["language"] * (len(set(prompts["language"])) > 1)
    for kind in kinds:
        for name in sorted(set(prompts[kind])):
            members[Group(kind, name)] = (prompts[kind] == name).to_numpy()
    reviewed, ok = prompts["flag"].ne("").to_numpy(), prompts["flag"].eq("ok").to_numpy()
    for name, inside in (("ok", ok), ("faulty", reviewed & ~ok)):
        if inside.any():
            members[Group("flag", name)] = inside
    return members


def large_groups(prompts: pd.DataFrame, min_group: int) -> dict[Group, np.ndarray]:
    """Those of :func:`groups` that hold so many clusters of questions; subjects are left out."""
    return {
        group: inside
        for group, inside in groups(prompts).items()
        if group.kind != "subject" and prompts.loc[inside, "cluster"].nunique() >= min_group
    }


def group_table(
    read: Readings,
    groups: dict[Group, np.ndarray],
    min_group: int,
    *,
    n_bins: Sequence[int],
    min_count: Sequence[int],
    draws: int,
    seed: int,
    threads: int = 1,
) -> pd.DataFrame:
    """:func:`metric_table` of every group, with its columns.

    Parameters
    ----------
    read : Readings
        ``logits`` of shape (layers, n, n_options).
    groups : dict of array of bool, shape (n,)
    min_group : int
        Groups of fewer clusters of questions, over which intervals are taken, get NaN and a reason.
    n_bins, min_count, draws, seed
        As of :func:`metric_table`.
    threads : int
    """
    held = {name: len(np.unique(read.cluster[rows])) for name, rows in groups.items()}

    def measured(name: Group) -> pd.DataFrame:
        if held[name] >= min_group:
            return metric_table(read.take(groups[name]), n_bins, min_count, draws, seed)
        return pd.DataFrame()

    # one BLAS thread each: the groups share the cores, and sums do not depend on how many there are
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        tables = dict(zip(groups, pool.map(measured, groups), strict=True))
    full = next((table for table in tables.values() if len(table)), None)
    if full is None:
        raise InputError(
            f"{_counted(len(read.answer), max(held.values()))} in all, fewer than the {min_group} "
            "that calibration: min_group asks for; lower it or study more questions"
        )
    for name, rows in groups.items():
        if not len(tables[name]):
            n, empty = int(rows.sum()), dict.fromkeys(VALUES, np.nan)
            reason = f"{_counted(n, held[name])}, fewer than {min_group}"
            tables[name] = full.assign(**empty, n=n, reason=reason)
    return pd.concat([table.assign(**group.columns()) for group, table in tables.items()])


def _counted(questions: int, clusters: int) -> str:
    """Number of questions, and of clusters if some are of one cluster."""
    apart = f" in {clusters} cluster(s)" if clusters < questions else ""
    return f"{questions} questions{apart}"


def _mean_rows(values: dict[str, np.ndarray], weights: np.ndarray) -> list[dict]:
    stacked = np.stack(list(values.values()), -1)
    has = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):  # none has it: 0 / 0
        counted = np.where(has, stacked, 0)
        estimate, resampled = counted.sum(0) / has.sum(0), (weights @ counted).T
        resampled /= has.sum(0)[:, None]
    low, high = resampling.interval(estimate, resampled)
    rows = [
        {"metric": name, "n_bins": 0, "value": value, "ci_low": a, "ci_high": b}
        for name, value, a, b in zip(values, estimate, low, high, strict=True)
    ]
    for row in rows:
        if np.isnan(row["value"]):
            row["reason"] = WHY_NONE[row["metric"]]
    return rows


def _error(
    entry: registry.Binned,
    read: Readings,
    weights: np.ndarray,
    n_bins: int,
    outcomes: tuple[np.ndarray, list[np.ndarray]] | None,
) -> dict:
    """Value, interval and null floor of a binned error, or why there is none."""
    sample = entry.resampled(read, weights, n_bins)
    if isinstance(sample, str):
        return {"value": np.nan, "reason": sample}
    if outcomes is None:
        floor = sample.null(None)
    else:
        correct, by_option = outcomes
        floor = sample.null(by_option if entry.by_option else [correct])
    low, high = resampling.error_interval(sample) if entry.bounded else (np.nan, np.nan)
    return {
        "value": sample.estimate,
        "ci_low": low,
        "ci_high": min(high, 1.0),
        "null_mean": floor.mean(),
        "null_high": np.quantile(floor, 0.95),
    }


def auroc_values(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Values whose mean is AUROC and whose resampled mean is, to first order, its resample.

    Placements of each question among those of the other kind (DeLong et al. 1988).

    Parameters
    ----------
    confidence, correct : array, shape (n,)

    Returns
    -------
    array, shape (n,)
        NaN where all predictions are right, or all wrong.
    """
    area = float(calibration.auroc(confidence, correct))
    if np.isnan(area):
        return np.full(len(confidence), np.nan)
    right, everywhere = correct == 1, rankdata(confidence)
    placement = np.empty(len(confidence))
    for kind in (right, ~right):
        placement[kind] = (everywhere[kind] - rankdata(confidence[kind])) / (~kind).sum()
    placement[~right] = 1 - placement[~right]
    return area + (placement - area) / np.where(right, right.mean(), 1 - right.mean())


def reliability(confidence: np.ndarray, correct: np.ndarray, n_bins: int) -> pd.DataFrame:
    """Accuracy and mean confidence of each confidence bin that holds questions.

    Parameters
    ----------
    confidence, correct : array, shape (n,)
    n_bins : int
        Of equal width.

    Returns
    -------
    DataFrame
        ``bin`` (its upper edge), ``n``, ``confidence``, ``accuracy`` with ``ci_low`` and
        ``ci_high``, 95 % Wilson intervals (questions taken as independent).
    """
    table = calibration.bin_table(confidence, correct, n_bins)
    rows = []
    for b in np.flatnonzero(table.count):
        n, accuracy = int(table.count[b]), float(table.accuracy[b])
        low, high = binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
        head = {"bin": (b + 1) / n_bins, "n": n, "confidence": float(table.confidence[b])}
        rows.append({**head, "accuracy": accuracy, "ci_low": float(low), "ci_high": float(high)})
    return pd.DataFrame(rows)
