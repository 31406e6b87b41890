"""What is made from one table of prompts, told apart from what is made from another.

Every file says in its metadata which prompts it was made from. What reads several checks that they
are of one run, and joins their rows by what names a prompt or by its place among the prompts, never
by their own order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow.parquet
from safetensors import SafetensorError, safe_open

from layercal import InputError
from layercal.files import write_atomically

if TYPE_CHECKING:
    import torch

KEY = "prompts_sha256"  # in the metadata of every file
PROMPT = ["question_id", "permutation"]  # what names a prompt
PARTS = ("attention", "mlp")  # of a block, in the order in which they write


@dataclass
class Run:
    """One table of prompts, and reading and writing of what is made from it.

    Attributes
    ----------
    path : Path
    prompts : DataFrame, n rows
        ``prompts.parquet``.
    """

    path: Path
    prompts: pd.DataFrame

    @classmethod
    def load(cls, path: Path) -> Run:
        """Open a table of prompts."""
        return cls(path, read(path))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the prompts, of their text only by its tokens."""
        tokens = ["input_ids", "option_ids"]
        plain = self.prompts.drop(columns=[*tokens, "prompt"])
        digest = hashlib.sha256(plain.to_json(orient="split", index=False).encode())
        for column in tokens:
            for ids in self.prompts[column]:
                digest.update(np.array([len(ids), *ids], "<i8").tobytes())
        return digest.hexdigest()

    @property
    def option_ids(self) -> list[int]:
        """Token ids of the option letters, of as many as any question has."""
        return list(self.prompts["option_ids"].iloc[self.n_options.argmax()])

    @property
    def n_options(self) -> np.ndarray:
        """Options of each prompt; (n,)."""
        return self.prompts["option_ids"].map(len).to_numpy()

    def write(self, path: Path, content: pd.DataFrame | dict) -> None:
        """Write a table (parquet), tensors (safetensors) or an object (JSON) of this run."""
        if isinstance(content, pd.DataFrame):
            write_table(path, content, self)
            return
        data: str | bytes
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            data = save(content, {KEY: self.fingerprint})
        else:
            data = json.dumps({KEY: self.fingerprint, **content}, indent=2) + "\n"
        write_atomically(path, data)

    def read(self, path: Path) -> Any:
        """Read such a file; errors as of :meth:`check`."""
        self.check(path)
        return read(path)

    def check(self, *paths: Path) -> None:
        """See that files were made from these prompts.

        Raises
        ------
        InputError
            If one is damaged, was made from others, or does not say from which.
        """
        other = [path for path in paths if not _is_of(path, self.fingerprint)]
        if other:
            raise _of_different_runs(other, self.path)

    def by_prompt(self, path: Path) -> pd.DataFrame:
        """Read a table of readings of each prompt at every layer; see :func:`joined`."""
        return joined(self.read(path), self.prompts, str(path))

    def shards(self, paths: Iterable[Path]) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """Read tensors in shards, which say whose they are (``rows``).

        Returns
        -------
        list of dict of Tensor
            Of those that are not empty.
        Tensor of int, shape (n,)
            Place of each prompt in the shards one after another.

        Raises
        ------
        InputError
            As of :meth:`check`, or if they do not hold each prompt once.
        """
        import torch

        shards = {path: self.read(path) for path in paths}
        order = self.order(shards, [shard["rows"].numpy() for shard in shards.values()])
        return [shard for shard in shards.values() if len(shard["rows"])], torch.tensor(order)

    def order(self, paths: Iterable[Path], rows: Sequence[np.ndarray]) -> np.ndarray:
        """Place of each prompt in shards that hold these rows, one shard after another; (n,)."""
        held = np.concatenate(rows)
        if not np.array_equal(np.sort(held), np.arange(len(self.prompts))):
            raise InputError(
                f"{', '.join(map(str, paths))}: together these shards do not hold each prompt of "
                f"{self.path} once; delete them and run again, which makes them anew"
            )
        return np.argsort(held)


def write_table(path: Path, table: pd.DataFrame, *runs: Run) -> None:
    """Write a table that was made from one run, or from several."""
    marked, prompts = table.copy(deep=False), [run.fingerprint for run in runs]
    marked.attrs = {KEY: prompts if len(prompts) > 1 else prompts[0]}
    write_atomically(path, marked.to_parquet(index=False))


def read(path: Path) -> Any:  # its suffix says what
    """Read a table (parquet, CSV), tensors (safetensors) or an object (JSON).

    Raises
    ------
    InputError
        If it is damaged.
    """
    with _undamaged(path):
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".csv":
            return pd.read_csv(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return json.loads(path.read_text())


def made_from(path: Path) -> str | list[str] | None:
    """Fingerprint of the prompts that a file was made from, or several; None if it is silent."""
    with _undamaged(path):
        if path.suffix == ".parquet":
            kept = pyarrow.parquet.read_schema(path).metadata or {}
            return json.loads(kept.get(b"PANDAS_ATTRS", b"{}")).get(KEY)
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                return (file.metadata() or {}).get(KEY)
        return json.loads(path.read_text()).get(KEY)


def _is_of(path: Path, fingerprint: object) -> bool:
    """Whether a file was made from prompts, from others beside them or not."""
    prompts = made_from(path)
    return fingerprint in (prompts if isinstance(prompts, list) else [prompts])


def same(*paths: Path) -> None:
    """See that files are of one run, where its prompts are not at hand; errors as of a run's check.

    Parameters
    ----------
    *paths : Path
        The first of this run alone.
    """
    first = made_from(paths[0])
    other = [path for path in paths if first is None or not _is_of(path, first)]
    if other:
        raise _of_different_runs(other, paths[0])


def joined(table: pd.DataFrame, prompts: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of a table of readings in the order of the prompts, each at all layers.

    Parameters
    ----------
    table : DataFrame, n (L + 1) rows
        ``question_id``, ``permutation``, ``layer``, ``answer`` and more, in any order.
    prompts : DataFrame, n rows
    name : str
        Of the table, for what is said of it.

    Raises
    ------
    InputError
        If it holds other prompts or answers, or not each prompt once at every layer.
    """
    place = pd.MultiIndex.from_frame(prompts[PROMPT]).get_indexer(
        pd.MultiIndex.from_frame(table[PROMPT])
    )
    order = np.lexsort((table["layer"], place))
    layers = sorted(table["layer"].unique())
    wanted = np.repeat(np.arange(len(prompts)), len(layers)), np.tile(layers, len(prompts))
    found = table.iloc[order].reset_index(drop=True)
    same_rows = np.array_equal((place[order], found["layer"]), wanted)
    if not same_rows or (found["answer"] != prompts["answer"].to_numpy()[wanted[0]]).any():
        raise InputError(
            f"{name} holds other questions or answers than prompts.parquet, or not each once at "
            "every layer, so they are of different runs; run the lens again"
        )
    return found


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it and run again, which makes it anew"
        ) from error


def _of_different_runs(paths: Sequence[Path], like: Path) -> InputError:
    return InputError(
        f"{', '.join(map(str, paths))}: not made from the same prompts as {like}, so they are of "
        "different runs; delete what is older and run again, which makes it anew"
    )


class Residuals:
    """Residuals of a question set in their files, which are read a layer at a time.

    Indexed as a Tensor of shape (n, L + 1, d): ``[:, layer]`` reads one layer, (n, d), and a slice
    of layers several; ``[rows]`` keeps some of the questions and reads nothing. So a set larger
    than memory can be worked on.

    Parameters
    ----------
    shards : sequence of Tensor, shape (questions of the shard, L + 1, d)
        As :func:`read` maps them from their files.
    rows : Tensor of int, shape (n,)
        Their places in the shards one after another, in the order wanted.
    """

    def __init__(self, shards: Sequence[torch.Tensor], rows: torch.Tensor):
        self.shards, self.rows = shards, rows
        self.shape = (len(rows), *shards[0].shape[1:])

    @classmethod
    def load(cls, paths: Iterable[Path], run: Run) -> Residuals:
        """Open all shards of a run; errors as of :meth:`Run.shards`."""
        shards, rows = run.shards(paths)
        return cls([shard["residuals"] for shard in shards], rows)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        import torch

        if not isinstance(key, tuple):
            return Residuals(self.shards, self.rows[key])
        every, layers = key
        if every != slice(None):
            raise TypeError("residuals are indexed as [rows] or [:, layers]")
        return torch.cat([shard[:, layers] for shard in self.shards])[self.rows]


class _File:
    """A file of a study as an attribute of its results, read when it is first asked for."""

    def __init__(self, pattern: str):
        self.pattern = pattern

    def __set_name__(self, owner: type[Results], name: str) -> None:
        self.name = name
        owner.PATTERNS[name] = self.pattern

    def __get__(self, results: Results | None, owner: type | None = None) -> Any:
        if results is None:
            return self
        value = results.read(self.name)
        results.__dict__[self.name] = value  # found before this from now on
        return value


class _Rows:
    """A list of ``summary.json`` as a table."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, results: Results | None, owner: type | None = None) -> Any:
        return self if results is None else pd.DataFrame(results.summary[self.name])


class Results:
    """All that a study has of one model on one question set; alone knows where it lies.

    Each table (DataFrame) or object (dict) is an attribute, read when it is first asked for and
    refused if it is of another run than the prompts.

    Parameters
    ----------
    study, model, questions : str
    root : path
        Of the project.
    files : dict of path, optional
        Those handed over, by name, in place of those that lie where the study has them.

    Attributes
    ----------
    residuals : Residuals
    claims, verdicts, transfer, reliability, selective, risk_coverage : DataFrame
        Of ``summary``.
    """

    PATTERNS: ClassVar[dict[str, str]] = {
        "figures": "reports/rendered/{study}/{model}/figures/{questions}"
    }

    manifest = _File("resources/models/{model}/manifest.json")
    texts = _File("resources/questions/{questions}.parquet")
    rejected = _File("resources/questions/{questions}.rejected.csv")
    prompts = _File("results/{study}/extract/{model}/{questions}/prompts.parquet")
    options = _File("results/{study}/lens/{model}/{questions}/options.parquet")
    tuned = _File("results/{study}/lens/{model}/{questions}/tuned.parquet")
    metrics = _File("results/{study}/lens/{model}/{questions}/metrics.parquet")
    phase = _File("results/{study}/lens/{model}/{questions}/phase.json")
    phases = _File("results/{study}/lens/{model}/{questions}/phases.parquet")
    recalibration = _File("results/{study}/lens/{model}/{questions}/recalibration.parquet")
    recalibrated_phase = _File("results/{study}/lens/{model}/{questions}/recalibrated-phase.json")
    steps = _File("results/{study}/lens/{model}/{questions}/steps.parquet")
    rivals = _File("results/{study}/lens/{model}/{questions}/rivals.parquet")
    comparisons = _File("results/{study}/lens/comparisons.parquet")  # of the whole study
    directions = _File("results/{study}/directions/{model}/{questions}/directions.parquet")
    vectors = _File("results/{study}/directions/{model}/{questions}/directions.safetensors")
    dimensions = _File("results/{study}/directions/{model}/{questions}/dimensions.parquet")
    nullspace = _File("results/{study}/ablation/{model}/{questions}/nullspace.parquet")
    neurons = _File("results/{study}/ablation/{model}/{questions}/neurons.parquet")
    blocks = _File("results/{study}/ablation/{model}/{questions}/blocks.parquet")
    norm = _File("results/{study}/ablation/{model}/{questions}/norm.parquet")
    sweep = _File("results/{study}/steering/{model}/{questions}/sweep.parquet")
    summary = _File("results/{study}/steering/{model}/{questions}/summary.json")

    claims, verdicts, transfer = _Rows(), _Rows(), _Rows()
    reliability, selective, risk_coverage = _Rows(), _Rows(), _Rows()

    def __init__(
        self,
        study: str,
        model: str,
        questions: str,
        root: str | Path = ".",
        files: dict[str, str | Path] | None = None,
    ):
        self.study, self.model, self.questions, self.root = study, model, questions, Path(root)
        self.files = {name: Path(path) for name, path in (files or {}).items()}
        self.with_prompts = bool(study) or "prompts" in self.files

    @classmethod
    def of(cls, *paths: Path, **files: str | Path) -> Results:
        """Results in files that were handed over, wherever they lie, and with prompts or without.

        Without their prompts, :meth:`check` alone sees that they are of one run.

        Parameters
        ----------
        *paths : Path
            Of files that are named as the study has them.
        **files : str or Path
            By the name of their attribute.
        """
        names = {Path(pattern).name: name for name, pattern in cls.PATTERNS.items()}
        return cls("", "", "", files={**{names[path.name]: path for path in paths}, **files})

    def path(self, name: str) -> Path:
        """Where a file lies, by the name of its attribute."""
        names = {"study": self.study, "model": self.model, "questions": self.questions}
        return self.files.get(name) or self.root / self.PATTERNS[name].format(**names)

    def figure(self, name: str, kind: str = "png") -> Path:
        """Where a drawn figure lies, or the rows that it shows (``csv``)."""
        return self.path("figures") / f"{name}.{kind}"

    @cached_property
    def run(self) -> Run:
        """The prompts, of which all else must be."""
        return Run.load(self.path("prompts"))

    @cached_property
    def residuals(self) -> Residuals:
        """Residuals at the answer position, all layers, read a layer at a time."""
        return Residuals.load(
            sorted(self.path("prompts").parent.glob("residuals-*.safetensors")), self.run
        )

    def read(self, name: str) -> Any:
        """Read a file anew; errors as of :meth:`Run.check`."""
        path = self.path(name)
        if name == "prompts":
            return self.run.prompts
        if name in ("options", "tuned"):
            return self.run.by_prompt(path)
        return self.run.read(path) if self.with_prompts and self._of_run(name) else read(path)

    def _of_run(self, name: str) -> bool:
        """Whether a file says of which prompts it was made."""
        return name != "prompts" and self.PATTERNS[name].startswith("results/")

    def check(self) -> None:
        """See that files handed over are of one run, all at once; errors as of :meth:`Run.check`.

        Those of the study are checked as they are read.
        """
        paths = [path for name, path in self.files.items() if self._of_run(name)]
        if self.with_prompts:
            self.run.check(*paths)
        else:
            same(*paths)


def select(
    metrics: pd.DataFrame,
    metric: str | Sequence[str],
    group: str | Sequence[str] = "all",
    lens: str = "logit",
    order: str | None = None,
    every_bins: bool = False,
) -> pd.DataFrame:
    """Rows of ``metrics.parquet`` at the primary number of bins and in one order of the options.

    Parameters
    ----------
    metrics : DataFrame
    metric, group : str or sequence of str
    lens : {"logit", "tuned"}
    order : str, optional
        The primary one (``as-is``, or ``averaged`` over all rotations) if left out.
    every_bins : bool
        The secondary numbers of bins, too.

    Returns
    -------
    DataFrame
        In the order of the table: by group, layer and metric.
    """
    primary = metrics[metrics["primary"]]
    chosen = metrics["lens"].eq(lens) & metrics["order"].eq(order or primary["order"].iloc[0])
    if not every_bins:
        chosen &= metrics["n_bins"].isin(primary["n_bins"].unique())
    for column, wanted in (("metric", metric), ("group", group)):
        chosen &= metrics[column].isin([wanted] if isinstance(wanted, str) else wanted)
    return metrics[chosen]


def primary_bins(metrics: pd.DataFrame) -> int:
    """Primary number of bins of ``metrics.parquet``."""
    return int(metrics.loc[metrics["primary"], "n_bins"].max())
