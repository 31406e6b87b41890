"""What a report says in sentences."""

from __future__ import annotations

import json

import pandas as pd

from layercal.results import Results

# settings and packages of which the stages' records say how tables were made
RECORDED = ("commit", "processor", "gpu", "dtype", "device", "seed", "python")


def what_was_run(results: Results) -> list[str]:
    """Questions, shots and the model, with where it comes from."""
    prompts, manifest = results.prompts, results.manifest
    left_out = (~results.rejected["kept"]).sum()
    shots = prompts["n_shots"]
    fewer = (shots < shots.max()).sum()
    return [
        f"{prompts['question_id'].nunique()} questions in {prompts['subject'].nunique()} subjects, "
        f"{shots.max() or 'zero'}-shot{f' ({fewer} with fewer)' if fewer else ''}, "
        f"{prompts['n_tokens'].mean():.0f} tokens on average; {left_out} question(s) of the "
        "source left out because their options or answer cannot be read.",
        f"Model: {manifest['source'].get('description', results.model)}, "
        f"{_origin(manifest['source'])}, licence {manifest['licence']}; "
        f"{results.phase['final_layer']} blocks.",
    ]


def _origin(source: dict) -> str:
    if "hub" in source:
        said = f"{source['hub']['repo']} at {source['hub']['revision'][:12]}…"
    else:
        said = source.get("folder") or source.get("gguf") or source["file"]
    return said + (f" (sha256 {source['sha256'][:12]}…)" if "sha256" in source else "")


def how_it_was_made(results: Results) -> list[str]:
    """Commit, hardware and packages, as the stages recorded them beside the tables.

    A pulled working copy has no such records.
    """
    folders = {results.path(name).parent for name in ("prompts", "metrics", "directions", "sweep")}
    values: dict[str, set[str]] = {name: set() for name in RECORDED}
    for folder in sorted(folders):
        for path in folder.glob("*.provenance.json"):
            record = json.loads(path.read_text())
            packages = record["packages"]
            for name, value in {**record["settings"], **record, **packages}.items():
                if name in values or name in packages:
                    values.setdefault(name, set()).add(str(value))
    return [f"{name}: {', '.join(sorted(said))}" for name, said in values.items() if said]


def claims(listed: pd.DataFrame) -> list[str]:
    """Evidence of each claim that applies."""
    return list(dict.fromkeys(listed.loc[listed["outcome"] != "not applicable", "evidence"]))


def random_neurons(table: pd.DataFrame) -> str:
    """What random sets of neurons do to ECE."""
    random = table[table["what"].eq("random neurons") & table["norm"].eq("live")]
    change = random["ece_change"]
    return (
        f"{len(random)} random sets of as many neurons change ECE by "
        f"{change.min():+.4f} to {change.max():+.4f} (norm live)."
    )
