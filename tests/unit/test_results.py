"""What is made from one table of prompts is never read together with what is made from another."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chain import Chain, questions
from conftest import ROOT
from safetensors.torch import save

from layercal import InputError, results
from layercal.metrics import readings

SHARDS = 3  # the last of them empty


def prompts_of(n=9, rotations=1, **changes):
    """A table of prompts, two tokens each."""
    rows = [
        {
            "question_id": f"q/{i}",
            "permutation": r,
            "answer": (i + r) % 4,
            "prompt": "?",
        }
        | {"input_ids": [i, r], "option_ids": [5, 6, 7, 8]}
        | {"cluster": f"q/{i}", "category": "c", "subject": "s", "language": "en", "flag": ""}
        for i in range(n)
        for r in range(rotations)
    ]
    return pd.DataFrame(rows).assign(**changes)


def run_of(prompts):
    return results.Run(Path("prompts.parquet"), prompts)


def test_the_fingerprint_is_of_all_that_results_depend_on():
    first = run_of(prompts_of()).fingerprint
    assert len(first) == 64
    same = [prompts_of(prompt="!")]
    other = [
        prompts_of(8),
        prompts_of().iloc[::-1],
        prompts_of(answer=0),
        prompts_of(cluster="one"),
        prompts_of(category="d"),
        prompts_of(question_id=[f"r/{i}" for i in range(9)]),
        prompts_of(input_ids=[[i, 1] for i in range(9)]),
        prompts_of(input_ids=[[0, i] for i in range(9)]),
        prompts_of(option_ids=[[5, 6, 7, 9]] * 9),
    ]
    assert {run_of(one).fingerprint for one in same} == {first}
    found = [run_of(one).fingerprint for one in other]
    assert first not in found and len(set(found)) == len(found)


def test_the_fingerprint_is_that_of_the_file(tmp_path):
    path = tmp_path / "prompts.parquet"
    prompts_of().to_parquet(path)
    assert results.Run.load(path).fingerprint == run_of(prompts_of()).fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.parquet", pd.DataFrame({"a": [1, 2]})),
        ("tensors.safetensors", {"a": torch.arange(3)}),
        ("object.json", {"a": 1}),
    ],
)
def test_files_of_another_run_are_refused(tmp_path, name, content):
    path, own, other = tmp_path / name, run_of(prompts_of()), run_of(prompts_of(8))
    own.write(path, content)
    first = path.read_bytes()
    found = own.read(path)
    assert str(found["a"]) == str(content["a"]) or found["a"].equals(content["a"])
    with pytest.raises(InputError, match=f"{name}: not made from the same prompts as prompts.par"):
        other.read(path)
    own.write(path, content)
    assert path.read_bytes() == first
    with pytest.raises(InputError, match="different runs"):
        other.write(tmp_path / f"2{name}", content)
        results.same(path, tmp_path / f"2{name}")
    results.same(path, path)


def test_files_that_do_not_say_are_refused(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    (tmp_path / "c.json").write_text("{}")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=f"{path.name}: not made from the same"):
            run_of(prompts_of()).check(path)
        with pytest.raises(InputError, match=f"{path.name}: not made from the same"):
            results.same(path, path)


def test_damaged_files_are_named(tmp_path):
    for name in ("a.parquet", "b.safetensors", "c.json"):
        (tmp_path / name).write_bytes(b"\xff not this")
        for reading in (results.read, results.made_from):
            with pytest.raises(InputError, match=f"{name} is damaged"):
                reading(tmp_path / name)


def lens_table(prompts, layers=3, seed=0):
    """Readings of prompts at every layer, as the lens writes them."""
    n = len(prompts) * layers
    logits = np.random.default_rng(seed).normal(size=(n, 4))
    return pd.DataFrame(logits, columns=[f"logit_{letter}" for letter in "ABCD"]).assign(
        **{
            name: np.repeat(prompts[name].to_numpy(), layers)
            for name in ("question_id", "permutation", "answer")
        },
        layer=np.tile(range(layers), len(prompts)),
        option_mass=np.arange(n) / n,
        entropy=1.0,
    )


@pytest.mark.parametrize("rotations", [1, 4])
def test_rows_are_joined_by_question_rotation_and_layer(rng, rotations):
    prompts = prompts_of(rotations=rotations)
    table = lens_table(prompts)
    shuffled = table.iloc[rng.permutation(len(table))]
    pd.testing.assert_frame_equal(results.joined(shuffled, prompts, "t"), table, check_like=True)
    found = readings.from_options(results.joined(shuffled, prompts, "t"))
    for order, read in readings.from_options(table).items():
        np.testing.assert_array_equal(found[order].logits, read.logits)
        np.testing.assert_array_equal(found[order].answer, read.answer)
    # rotations of a question need not stand together
    apart = prompts.sort_values("permutation", kind="stable")
    found = readings.from_options(results.joined(shuffled, apart, "t"))
    for order, read in readings.from_options(table).items():
        np.testing.assert_array_equal(found[order].logits, read.logits)


def test_rows_of_other_prompts_are_refused():
    prompts = prompts_of()
    table = lens_table(prompts)
    wrong = [
        table.iloc[:-3],
        table.iloc[:-1],
        pd.concat([table.iloc[3:], table.iloc[:3]]).iloc[3:],
        pd.concat([table, table.iloc[:3]]),
        pd.concat([table.iloc[1:], table.iloc[:1].assign(layer=1)]),
        table.assign(question_id="r/" + table["question_id"].str[2:]),
        table.assign(permutation=1),
        table.assign(answer=(table["answer"] + 1) % 4),
    ]
    for one in wrong:
        with pytest.raises(InputError, match="t holds other questions or answers"):
            results.joined(one, prompts, "t")


def test_residuals_of_shards_are_indexed_like_one_tensor(tmp_path):
    whole = torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(0))
    paths = [tmp_path / f"{shard}.safetensors" for shard in range(3)]
    run, held = run_of(prompts_of()), torch.tensor([5, 2, 8, 0, 1, 7, 3, 6, 4]).split([2, 0, 7])
    for path, rows in zip(paths, held, strict=True):
        run.write(path, {"rows": rows.contiguous(), "residuals": whole[rows]})
    found, mask = results.Residuals.load(paths, run), torch.arange(9) % 2 == 0
    some, expected = found[mask], whole[mask]
    fewer = some[torch.tensor([4, 0])]
    for one, like in ((found, whole), (some, expected), (fewer, expected[[4, 0]])):
        assert one.shape == like.shape and len(one) == len(like)
        for layers in (0, -1, slice(1, 3), slice(-2, None)):
            assert torch.equal(one[:, layers], like[:, layers])
    with pytest.raises(
        InputError, match=r"0\.safetensors, .*1\.safetensors: together these shards do"
    ):
        results.Residuals.load(paths[:2], run)
    with pytest.raises(TypeError, match=r"\[rows\] or \[:, layers\]"):
        found[0, 1]


def test_the_last_shard_may_not_be_missing(tmp_path):
    """Rows 0 to 4 are the first ones of nine, too."""
    run, path = run_of(prompts_of()), tmp_path / "0.safetensors"
    run.write(path, {"rows": torch.arange(5), "residuals": torch.zeros(5, 2, 3)})
    with pytest.raises(InputError, match="together these shards do not hold each prompt"):
        results.Residuals.load([path], run)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two runs of one model on as many questions, which differ in what is asked."""
    made = []
    for place in range(2):
        chain = Chain(tmp_path_factory.mktemp(f"run{place}"))
        rows = questions("ABCD" * 6)
        for row in rows:
            row["question"] += " Say!" * place
        chain.fetch(rows)
        chain.prompts()
        chain.extract(shards=SHARDS)
        chain.lens()
        chain.metrics()
        chain.recalibration()
        chain.comparisons()
        chain.directions()
        chain.nullspace()
        chain.neurons()
        chain.steps()
        chain.norm()
        chain.average()
        for shard, held in enumerate(chain.residuals):
            own = {"shard": shard, "residuals": held}
            chain.ablate(**own, logits=chain.path(f"blocks-{shard}.safetensors"))
            chain.steer(**own, logits=chain.path(f"logits-{shard}.safetensors"))
        chain.blocks()
        chain.sweep()
        made.append(chain)
    return made


# stage -> what it reads of a run beside its prompts
READ = {
    "lens": "residuals-1.safetensors",
    "metrics": "options.parquet tuned.parquet",
    "recalibration": "options.parquet residuals-1.safetensors",
    "comparisons": "options.parquet phase.json",
    "directions": "residuals-0.safetensors options.parquet phase.json",
    "nullspace": "residuals-0.safetensors",
    "neurons": "residuals-0.safetensors",
    "steps": "options.parquet phase.json residuals-1.safetensors",
    "norm": "residuals-1.safetensors",
    "average": "residuals-1.safetensors",
    "ablate": "residuals-0.safetensors means.safetensors phase.json",
    "blocks": "blocks-1.safetensors",
    "steer": "directions.safetensors residuals-0.safetensors",
    "sweep": "directions.safetensors dimensions.parquet phase.json logits-1.safetensors",
    "explore": "options.parquet metrics.parquet phase.json directions.safetensors sweep.parquet "
    "logits-1.safetensors",
    "figure": "options.parquet metrics.parquet phase.json directions.parquet dimensions.parquet "
    "nullspace.parquet neurons.parquet blocks.parquet sweep.parquet summary.json "
    "phases.parquet recalibration.parquet recalibrated-phase.json steps.parquet rivals.parquet "
    "norm.parquet",
    "atlas": "phase.json recalibration.parquet recalibrated-phase.json summary.json "
    "comparisons.parquet",
}


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage, names in READ.items() for name in names.split()]
)
def test_a_stage_refuses_a_file_of_another_run(two_runs, tmp_path, stage, name):
    """Of as many questions and of the same shape, so that only what it says of itself differs."""
    own, other = two_runs
    folder = shutil.copytree(own.folder, tmp_path / "mixed")
    shutil.copy(other.path(name), folder / name)
    with pytest.raises(InputError) as error:
        getattr(own.at(folder), stage)()
    assert f"{folder / name}: not made from the same prompts as" in str(error.value)


def test_a_source_of_another_run_is_refused(two_runs):
    own, other = two_runs
    sources = {"sources": ["m/other"], "source_residuals": own.residuals}
    prompts = other.path("prompts.parquet")
    with pytest.raises(InputError, match=f"not made from the same prompts as {prompts}"):
        own.directions(**sources, source_prompts=[prompts])


def test_the_order_of_rows_and_of_shards_counts_for_nothing(two_runs, tmp_path, rng):
    own, _ = two_runs
    chain = own.at(shutil.copytree(own.folder, tmp_path / "shuffled"))
    for name in ("options", "tuned"):
        path = chain.path(f"{name}.parquet")
        table = pd.read_parquet(path)
        table.iloc[rng.permutation(len(table))].to_parquet(path)  # pandas keeps what it says
    chain.metrics()
    chain.directions(residuals=chain.residuals[::-1])
    chain.blocks(logits=sorted(chain.folder.glob("blocks-*.safetensors"))[::-1])
    chain.sweep(logits=sorted(chain.folder.glob("logits-*.safetensors"))[::-1])
    names = ("metrics.parquet", "phase.json", "blocks.parquet", "sweep.parquet", "summary.json")
    for name in names:
        assert chain.path(name).read_bytes() == own.path(name).read_bytes(), name
    names = ("directions.safetensors", "directions.parquet", "dimensions.parquet")
    for name in names:
        assert chain.path(name).read_bytes() == own.path(name).read_bytes(), name


def test_results_lie_where_the_study_has_them_and_are_read_when_asked_for(tmp_path):
    own = results.Results("s", "m", "q", tmp_path)
    for name, made in (("prompts", prompts_of()), ("texts", pd.DataFrame({"question": ["?"]}))):
        own.path(name).parent.mkdir(parents=True, exist_ok=True)
        made.to_parquet(own.path(name))
    run, claims = run_of(prompts_of()), [{"claim": "c", "value": None}]
    run.write(own.path("summary"), {"claims": claims})
    run.write(own.path("sweep"), pd.DataFrame({"alpha": [0.0]}))
    run.write(own.path("prompts").with_name("residuals-0.safetensors"), shard_of(range(9)))
    assert own.path("sweep") == tmp_path / "results/s/steering/m/q/sweep.parquet"
    assert own.sweep is own.sweep and own.sweep["alpha"].tolist() == [0.0]
    assert own.claims["claim"].tolist() == ["c"] and own.texts["question"].tolist() == ["?"]
    assert own.residuals.shape == (9, 2, 3) and len(own.prompts) == 9
    with pytest.raises(FileNotFoundError):
        own.phase  # noqa: B018
    run_of(prompts_of(8)).write(own.path("phase"), {})
    run_of(prompts_of(8)).write(own.path("metrics"), pd.DataFrame({"a": [1]}))
    with pytest.raises(InputError, match=r"phase\.json: not made from the same prompts"):
        own.phase  # noqa: B018
    with pytest.raises(InputError, match=r"metrics\.parquet, .*phase\.json: not made from the"):
        handed(*map(own.path, ("sweep", "metrics", "phase", "prompts"))).check()
    elsewhere = results.Results("s", "m", "q", tmp_path, {"sweep": tmp_path / "other.parquet"})
    assert elsewhere.path("sweep") == tmp_path / "other.parquet"
    assert elsewhere.path("summary") == own.path("summary")


def handed(*paths):
    return results.Results.of(*paths)


def test_files_handed_over_are_known_by_their_names(tmp_path):
    run_of(prompts_of()).write(tmp_path / "recalibrated-phase.json", {"exists": True})
    run_of(prompts_of()).write(tmp_path / "phase.json", {"exists": False})
    of = handed(tmp_path / "phase.json", tmp_path / "recalibrated-phase.json")
    assert of.recalibrated_phase["exists"] and not of.phase["exists"]


def test_results_lie_where_rules_put_them():
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    rules = rules.replace("{{", "{").replace("}}", "}")
    folders = {"reports/rendered/{study}": "<reports>", "results/{study}": "<results>"}
    for pattern in results.Results.PATTERNS.values():
        for folder, short in folders.items():
            pattern = pattern.replace(folder, short)
        assert pattern in rules


def shard_of(rows):
    return {"rows": torch.tensor(rows), "residuals": torch.zeros(len(rows), 2, 3)}


def test_select_reads_the_primary_bins_and_order_off_the_table():
    """Not off the order of its rows."""
    keys = [
        (order, group, lens, metric, bins, layer)
        for order in ("rotation-0", "averaged")
        for group in ("category:c", "all")
        for lens in ("tuned", "logit")
        for metric, bins in (("ece", 15), ("ece", 10), ("accuracy", 0))
        for layer in range(3)
    ]
    names = ["order", "group", "lens", "metric", "n_bins", "layer"]
    table = pd.DataFrame(keys, columns=names).sample(frac=1, random_state=0)
    table["primary"] = table["order"].eq("averaged") & table["n_bins"].isin([0, 10])
    assert results.primary_bins(table) == 10
    found = results.select(table, "ece").drop(columns=["layer", "primary"]).drop_duplicates()
    assert found.to_numpy().tolist() == [["averaged", "all", "logit", "ece", 10]]
    found = results.select(table, ["ece", "accuracy"], ["all", "category:c"], "tuned", "rotation-0")
    assert len(found) == 2 * 2 * 3 and set(found["n_bins"]) == {0, 10}
    assert set(found["order"]) == {"rotation-0"} and set(found["lens"]) == {"tuned"}
