"""A study of a tiny model, its stages run one after another in this process."""

import copy
import importlib
import json
import sys
from pathlib import Path

import pandas as pd
from conftest import ROOT, word_tokenizer
from families import tiny

from layercal.report import figures

TEMPLATES = ROOT / "src/layercal/report/templates"
FITTED = {"estimators": ["update-mean", "phase-mean", "gradient", "probe"], "ranks": [1]}


def run(name, monkeypatch, **options):
    """Run a stage on a command line; lists are options of several values."""
    arguments = [name]
    for option, value in options.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{option.replace('_', '-')}", *map(str, values)]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", arguments)
        importlib.import_module(f"layercal.stages.{name}").main()


class Chain:
    """Stages of one model and question set, each with its files in one folder.

    Stages take their files by name from ``self.files``; options of the command line can be given,
    too, and win.
    """

    def __init__(self, folder: Path, monkeypatch, change=lambda model: None):
        self.folder, self.monkeypatch = folder, monkeypatch
        model = folder / "model"
        tokenizer = word_tokenizer(" ABCDEFGHIJ")
        made = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
        change(made)
        made.save_pretrained(model)
        tokenizer.save_pretrained(model)
        manifest = {"files": {}, "source": {"folder": "model"}, "licence": "none"}
        (model / "manifest.json").write_text(json.dumps(manifest))
        self.manifest = model / "manifest.json"

    def path(self, name):
        return self.folder / name

    def fetch(self, rows):
        own = self.path("own.jsonl")
        own.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.path("questions.yaml").write_text(f"own: {{file: {own}}}\n")
        self.run(
            "fetch_questions",
            questions="own",
            registry=self.path("questions.yaml"),
            out=self.path("own.parquet"),
            rejected=self.path("rejected.csv"),
        )

    def run(self, name, **options):
        run(name, self.monkeypatch, **options)

    def model(self, **options):
        """Options of the stages that load the model."""
        shared = {"manifest": self.manifest, "prompts": self.path("prompts.parquet")}
        return {**shared, "dtype": "float32", "device": "cpu", **options}

    def prompts(self, **options):
        table = {"questions": self.path("own.parquet"), "out": self.path("prompts.parquet")}
        self.run("prompts", manifest=self.manifest, **{**table, **options})

    def extract(self, shards=1, **options):
        for shard in range(shards):
            out = self.path(f"residuals-{shard}.safetensors")
            self.run("extract", **self.model(shard=shard, shards=shards, out=out, **options))

    @property
    def residuals(self):
        return sorted(self.folder.glob("residuals-*.safetensors"))

    def lens(self, **options):
        made = {"out": self.path("options.parquet"), "tuned": self.path("tuned.parquet")}
        given = {"residuals": self.residuals, "folds": 3, **made, **options}
        self.run("lens", **self.model(**given))

    def metrics(self, **options):
        given = {
            "prompts": self.path("prompts.parquet"),
            "options": self.path("options.parquet"),
            "tuned": self.path("tuned.parquet"),
            "min_group": 10,
            "draws": 100,
            "out": self.path("metrics.parquet"),
            "phase": self.path("phase.json"),
            "numbers": self.path("numbers.json"),
            "curves": self.path("curves.csv"),
        }
        self.run("metrics", **{**given, **options})

    def directions(self, **options):
        given = {
            "residuals": self.residuals,
            "options": self.path("options.parquet"),
            "phase": self.path("phase.json"),
            "null_rule": "k=3",
            "folds": 3,
            "draws": 100,
            "random": 2,
            "min_group": 10,
            **FITTED,
            "out": self.path("directions.safetensors"),
            "table": self.path("directions.parquet"),
            "dimensions": self.path("dimensions.parquet"),
        }
        self.run("directions", **self.model(**{**given, **options}))

    def nullspace(self, **options):
        given = {
            "residuals": self.residuals,
            "rules": ["energy=0.9", "k=3"],
            "neurons": 4,
            "random": 2,
            "draws": 100,
            "shares": self.path("nullspace.parquet"),
            "out": self.path("neurons.parquet"),
        }
        self.run("nullspace", **self.model(**{**given, **options}))

    def steer(self, **options):
        given = {
            "residuals": self.residuals,
            "shard": 0,
            "directions": self.path("directions.safetensors"),
            "alphas": [0, 1],
            "modes": ["lens", "through-network"],
            "out": self.path("logits-0.safetensors"),
        }
        self.run("steer", **self.model(**{**given, **options}))

    def sweep(self, **options):
        given = {
            "prompts": self.path("prompts.parquet"),
            "directions": self.path("directions.safetensors"),
            "dimensions": self.path("dimensions.parquet"),
            "phase": self.path("phase.json"),
            "logits": sorted(self.folder.glob("logits-*.safetensors")),
            "alphas": [0, 1],
            "min_group": 10,
            "draws": 100,
            **FITTED,
            "out": self.path("sweep.parquet"),
            "summary": self.path("summary.json"),
        }
        self.run("sweep", **{**given, **options})

    def figure(self):
        self.run(
            "figure",
            **self.tables(*figures.TABLES),
            title="m on own",
            png=self.path("curves.png"),
            pdfs=self.path("letters.pdf"),
            pngs=self.path("letters.png"),
            csvs=self.path("letters.csv"),
            claims=self.path("claims.tex"),
        )

    def figures(self):
        """All figures, as the report embeds them."""
        kinds = {"pdfs": "pdf", "pngs": "png", "csvs": "csv"}
        self.run(
            "figure",
            **self.tables(*figures.TABLES),
            title="m on own",
            png=self.path("curves.png"),
            claims=self.path("claims.tex"),
            **{
                option: [self.path(f"figures/{name}.{kind}") for name in figures.REGISTRY]
                for option, kind in kinds.items()
            },
        )

    def explore(self):
        self.run(
            "explore",
            pairs="m/own",
            **self.tables("prompts", "options", "metrics", "phase", "sweep"),
            directions=self.path("directions.safetensors"),
            logits=sorted(self.folder.glob("logits-*.safetensors")),
            texts=self.path("own.parquet"),
            page=TEMPLATES / "explore.html",
            script=TEMPLATES / "explore.js",
            out=self.path("explore.html"),
        )

    def atlas(self):
        self.run(
            "atlas",
            pairs="m/own",
            metrics=self.path("metrics.parquet"),
            phases=self.path("phase.json"),
            summaries=self.path("summary.json"),
            out=self.path("atlas.html"),
            pdf=self.path("atlas.pdf"),
            csv=self.path("atlas.csv"),
        )

    def at(self, folder):
        """The same, its files in another folder."""
        other = copy.copy(self)
        other.folder, other.manifest = folder, folder / "model/manifest.json"
        return other

    def tables(self, *names):
        """Paths of the tables that figures and reports read, by name."""
        objects = {"phase": "phase.json", "summary": "summary.json", "rejected": "rejected.csv"}
        found = {name: self.path(objects.get(name, f"{name}.parquet")) for name in names}
        return found | ({"manifest": self.manifest} if "manifest" in names else {})

    def study(self):
        """All tables, from the prompts on."""
        for stage in ("metrics", "directions", "nullspace", "steer", "sweep"):
            getattr(self, stage)()


def questions(answers):
    """Rows of a question file with these answers, each a letter of four."""
    return [
        {
            "question_id": f"own/{i}",
            "subject": f"s{i % 2}",
            "question": f"{i} + {i}?",
            "choices": [str(2 * i + place) for place in range(4)],
            "answer": answer,
        }
        for i, answer in enumerate(answers)
    ]


def predictions(path):
    """Letter that each question's reading names at every layer; (n, L + 1)."""
    options = pd.read_parquet(path)
    layers = options["layer"].nunique()
    logits = options[[name for name in options if name.startswith("logit_")]].to_numpy()
    return logits.argmax(-1).reshape(-1, layers)
