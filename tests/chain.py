"""A study of a tiny model, its stages run one after another in this process."""

import copy
import json
from pathlib import Path

import pandas as pd
from conftest import ROOT, word_tokenizer
from families import tiny

from layercal.report import figures
from layercal.stages.ablate_blocks import ablate_blocks
from layercal.stages.ablate_neurons import ablate_neurons
from layercal.stages.average_parts import average_parts
from layercal.stages.draw_figures import draw_figures
from layercal.stages.evaluate_steering import evaluate_steering
from layercal.stages.extract_residuals import extract_residuals
from layercal.stages.fetch_questions import fetch_questions
from layercal.stages.fit_directions import fit_directions
from layercal.stages.measure_blocks import measure_blocks
from layercal.stages.measure_calibration import measure_calibration
from layercal.stages.measure_comparisons import measure_comparisons
from layercal.stages.measure_norm import measure_norm
from layercal.stages.measure_null_space import measure_null_space
from layercal.stages.measure_recalibration import measure_recalibration
from layercal.stages.measure_rivals import measure_rivals
from layercal.stages.measure_steps import measure_steps
from layercal.stages.read_lens import read_lens
from layercal.stages.render_atlas import render_atlas
from layercal.stages.render_explorer import render_explorer
from layercal.stages.steer_prompts import steer_prompts
from layercal.stages.tokenize_prompts import tokenize_prompts

TEMPLATES = ROOT / "src/layercal/report/templates"
SHOWN = (
    *("prompts", "options", "metrics", "phase", "directions", "dimensions"),
    *("phases", "recalibration", "recalibrated_phase", "steps", "rivals"),
    *("nullspace", "neurons", "norm", "blocks", "sweep", "summary"),
)
FITTED = {"estimators": ["update-mean", "phase-mean", "gradient", "probe"], "ranks": [1]}
# of fit_directions, which is fitted on nothing else then
ALONE = {"sources": [], "source_prompts": [], "source_residuals": []}


class Chain:
    """Stages of one model and question set, each with its files in one folder.

    What a stage is given beside them wins.
    """

    def __init__(self, folder: Path, change=lambda model: None):
        self.folder = folder
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
        fetch_questions(
            questions="own",
            entry={"file": str(own)},
            table=self.path("own.parquet"),
            rejected=self.path("rejected.csv"),
        )

    def model(self, **options):
        """What the stages that load the model ask for."""
        shared = {"manifest": self.manifest, "prompts": self.path("prompts.parquet")}
        return {**shared, "dtype": "float32", "device": "cpu", **options}

    def prompts(self, **options):
        given = {"questions": self.path("own.parquet"), "prompts": self.path("prompts.parquet")}
        tokenize_prompts(manifest=self.manifest, **{**given, **options})

    def extract(self, shards=1, **options):
        for shard in range(shards):
            given = {"residuals": self.path(f"residuals-{shard}.safetensors"), "shard": shard}
            extract_residuals(**self.model(shards=shards, **given, **options))

    @property
    def residuals(self):
        return sorted(self.folder.glob("residuals-*.safetensors"))

    def lens(self, **options):
        made = {"options": self.path("options.parquet"), "tuned": self.path("tuned.parquet")}
        given = {"residuals": self.residuals, "folds": 3, **made, **options}
        read_lens(**self.model(**given))

    def metrics(self, **options):
        given = {
            "prompts": self.path("prompts.parquet"),
            "options": self.path("options.parquet"),
            "tuned": self.path("tuned.parquet"),
            "n_bins": [10],
            "min_count": [1],
            "min_group": 10,
            "draws": 100,
            "metrics": self.path("metrics.parquet"),
            "phase": self.path("phase.json"),
            "phases": self.path("phases.parquet"),
            "numbers": self.path("numbers.json"),
            "curves": self.path("curves.csv"),
        }
        measure_calibration(**{**given, **options})

    def recalibration(self, **options):
        given = {
            "prompts": self.path("prompts.parquet"),
            "options": self.path("options.parquet"),
            "folds": 3,
            "draws": 100,
        }
        left = self.tables("recalibration", "recalibrated_phase")
        measure_recalibration(
            recalibration=left["recalibration"],
            phase=left["recalibrated_phase"],
            **{**given, **options},
        )
        given |= {"residuals": self.residuals, "table": self.path("rivals.parquet")}
        measure_rivals(**{**given, **options})

    def comparisons(self, **options):
        given = {
            "of_models": ["m"],
            "of_questions": ["own"],
            "prompts": [self.path("prompts.parquet")],
            "options": [self.path("options.parquet")],
            "phases": [self.path("phase.json")],
            "min_group": 10,
            "draws": 100,
            "table": self.path("comparisons.parquet"),
        }
        measure_comparisons(**{**given, **options})

    def directions(self, **options):
        given = {
            "residuals": self.residuals,
            "options": self.path("options.parquet"),
            "phase": self.path("phase.json"),
            "null_rule": "k=3",
            "folds": 3,
            "draws": 100,
            "random": 2,
            "category_group": 10,
            **FITTED,
            **ALONE,
            "vectors": self.path("directions.safetensors"),
            "table": self.path("directions.parquet"),
            "dimensions": self.path("dimensions.parquet"),
        }
        fit_directions(**self.model(**{**given, **options}))

    def nullspace(self, **options):
        given = {
            "residuals": self.residuals,
            "rules": ["energy=0.9", "k=3"],
            "table": self.path("nullspace.parquet"),
        }
        measure_null_space(**self.model(**{**given, **options}))

    def neurons(self, **options):
        given = {
            "residuals": self.residuals,
            "rules": ["energy=0.9", "k=3"],
            "n_neurons": 4,
            "random": 2,
            "draws": 100,
            "table": self.path("neurons.parquet"),
        }
        ablate_neurons(**self.model(**{**given, **options}))

    def steps(self, **options):
        given = {
            "prompts": self.path("prompts.parquet"),
            "options": self.path("options.parquet"),
            "phase": self.path("phase.json"),
            "residuals": self.residuals,
            "folds": 3,
            "steps": self.path("steps.parquet"),
        }
        measure_steps(**{**given, **options})

    def norm(self, **options):
        given = {"residuals": self.residuals, "table": self.path("norm.parquet")}
        measure_norm(**self.model(**{**given, **options}))

    def average(self, **options):
        given = {
            "prompts": self.path("prompts.parquet"),
            "residuals": self.residuals,
            "means": self.path("means.safetensors"),
        }
        average_parts(**{**given, **options})

    def ablate(self, **options):
        given = {
            "residuals": self.residuals[0],
            "means": self.path("means.safetensors"),
            "phase": self.path("phase.json"),
            "shard": 0,
            "logits": self.path("blocks-0.safetensors"),
        }
        ablate_blocks(**self.model(**{**given, **options}))

    def blocks(self, **options):
        given = {
            "prompts": self.path("prompts.parquet"),
            "logits": sorted(self.folder.glob("blocks-*.safetensors")),
            "draws": 100,
            "table": self.path("blocks.parquet"),
        }
        measure_blocks(**{**given, **options})

    def steer(self, **options):
        given = {
            "residuals": self.residuals[0],
            "shard": 0,
            "directions": self.path("directions.safetensors"),
            "alphas": [0.0, 1.0],
            "modes": ["lens", "through-network"],
            "logits": self.path("logits-0.safetensors"),
        }
        steer_prompts(**self.model(**{**given, **options}))

    def sweep(self, **options):
        given = {
            "prompts": self.path("prompts.parquet"),
            "directions": self.path("directions.safetensors"),
            "dimensions": self.path("dimensions.parquet"),
            "phase": self.path("phase.json"),
            "logits": sorted(self.folder.glob("logits-*.safetensors")),
            "alphas": [0.0, 1.0],
            "branches": 2,
            "min_group": 10,
            "draws": 100,
            "sweep": self.path("sweep.parquet"),
            "summary": self.path("summary.json"),
        }
        evaluate_steering(**{**given, **options})

    def figure(self):
        draw_figures(
            model="m",
            questions="own",
            tables=self.shown,
            png=self.path("curves.png"),
            pdfs=[self.path("letters.pdf")],
            pngs=[self.path("letters.png")],
            csvs=[self.path("letters.csv")],
            claims=self.path("claims.tex"),
        )

    def figures(self):
        """All figures, as the report embeds them."""
        kinds = {"pdfs": "pdf", "pngs": "png", "csvs": "csv"}
        draw_figures(
            model="m",
            questions="own",
            tables=self.shown,
            png=self.path("curves.png"),
            claims=self.path("claims.tex"),
            **{
                option: [self.path(f"figures/{name}.{kind}") for name in figures.REGISTRY]
                for option, kind in kinds.items()
            },
        )

    def explore(self):
        tables = self.tables("prompts", "options", "metrics", "phase", "sweep")
        render_explorer(
            pairs=["m/own"],
            **{name: [path] for name, path in tables.items()},
            directions=[self.path("directions.safetensors")],
            logits=sorted(self.folder.glob("logits-*.safetensors")),
            texts=[self.path("own.parquet")],
            page=TEMPLATES / "explore.html",
            script=TEMPLATES / "explore.js",
            html=self.path("explore.html"),
        )

    def atlas(self):
        render_atlas(
            pairs=["m/own"],
            metrics=[self.path("metrics.parquet")],
            phases=[self.path("phase.json")],
            recalibrations=[self.path("recalibration.parquet")],
            recalibrated_phases=[self.path("recalibrated-phase.json")],
            summaries=[self.path("summary.json")],
            comparisons=self.path("comparisons.parquet"),
            html=self.path("atlas.html"),
            pdf=self.path("atlas.pdf"),
            csv=self.path("atlas.csv"),
        )

    def at(self, folder):
        """The same, its files in another folder."""
        other = copy.copy(self)
        other.folder, other.manifest = folder, folder / "model/manifest.json"
        return other

    @property
    def shown(self):
        """Paths of the tables that figures and reports read."""
        return [*self.tables(*SHOWN).values()]

    def tables(self, *names):
        """Paths of the tables that figures and reports read, by name."""
        objects = {"phase": "phase.json", "summary": "summary.json", "rejected": "rejected.csv"}
        objects["recalibrated_phase"] = "recalibrated-phase.json"
        found = {name: self.path(objects.get(name, f"{name}.parquet")) for name in names}
        return found | ({"manifest": self.manifest} if "manifest" in names else {})

    def study(self):
        """All tables, from the prompts on."""
        for stage in ("metrics", "recalibration", "steps", "nullspace", "neurons", "norm"):
            getattr(self, stage)()
        for stage in ("average", "ablate", "blocks", "directions", "steer", "sweep"):
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
