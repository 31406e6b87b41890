# REQUIRED INPUTS: results/{study}/ extract, lens and directions of {model}/{questions},
#                  resources/models/{model}/
# OUTPUTS: results/{study}/steering/{model}/{questions}/logits-{shard}.safetensors, sweep.parquet,
#          summary.json


rule steering:
    input:
        expand(
            "<results>/steering/{model}/{questions}/summary.json",
            model=config["models"],
            questions=config["questions"],
        ),
        deleted("steering"),


rule steer_prompts:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
        directions="<results>/directions/{model}/{questions}/directions.safetensors",
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "ablation/blocks",
                "files",
                "metrics/calibration",
                "metrics/paired",
                "model/__init__",
                "model/architecture",
                "model/lens_model",
                "model/loading",
                "model/recording",
                "prompts/tokenizing",
                "results",
                "steering/fitted",
                "steering/interventions",
                "steering/steered",
                "steering/tally",
                "stages/steer",
            ],
        ),
    output:
        logits="<results>/steering/{model}/{questions}/logits-{shard}.safetensors",
    log:
        "<logs>/steering/{model}/{questions}/logits-{shard}.log",
    benchmark:
        "<benchmarks>/steering/{model}/{questions}/logits-{shard}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000),
        runtime=minutes(240),
        gpu=GPU,
    params:
        alphas=config["steering"]["alphas"],
        modes=config["steering"]["modes"],
        chunk=config["steering"]["chunk"],
        n_bins=config["calibration"]["n_bins"][0],
        dtype=config["extract"]["dtype"],
        device=config["extract"]["device"],
        quantize=config["extract"]["quantize"],
    message:
        "Steering {wildcards.model} on {wildcards.questions}, shard {wildcards.shard}"
    shell:
        "python -m layercal.stages.steer --manifest {input.manifest} --prompts {input.prompts}"
        " --residuals {input.residuals} --shard {wildcards.shard}"
        " --directions {input.directions} --n-bins {params.n_bins}"
        " --alphas {params.alphas} --modes {params.modes} --chunk {params.chunk}"
        " --dtype {params.dtype} --device {params.device} --quantize {params.quantize}"
        " --threads {threads} --out {output.logits} --log {log}"


rule evaluate_steering:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        directions="<results>/directions/{model}/{questions}/directions.safetensors",
        dimensions="<results>/directions/{model}/{questions}/dimensions.parquet",
        phase="<results>/lens/{model}/{questions}/phase.json",
        logits=expand(
            "<results>/steering/{{model}}/{{questions}}/logits-{shard}.safetensors", shard=SHARDS
        ),
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "ablation/table",
                "files",
                "metrics/accuracy",
                "metrics/calibration",
                "metrics/differences",
                "metrics/paired",
                "metrics/phase",
                "metrics/readings",
                "metrics/registry",
                "metrics/resampling",
                "metrics/scoring",
                "model/__init__",
                "model/architecture",
                "model/lens_model",
                "model/loading",
                "model/recording",
                "prompts/tokenizing",
                "results",
                "sources/questions",
                "steering/baselines",
                "steering/claims",
                "steering/dimensions",
                "steering/evaluation",
                "steering/fitted",
                "steering/steered",
                "steering/tally",
                "steering/verdicts",
                "stages/sweep",
            ],
        ),
    output:
        sweep="<results>/steering/{model}/{questions}/sweep.parquet",
        summary="<results>/steering/{model}/{questions}/summary.json",
    log:
        "<logs>/steering/{model}/{questions}/sweep.log",
    benchmark:
        "<benchmarks>/steering/{model}/{questions}/sweep.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=mb(4000, copies=4),
        runtime=growing(30),
    params:
        estimators=config["directions"]["estimators"],
        ranks=config["directions"]["ranks"],
        alphas=config["steering"]["alphas"],
        accuracy_margin=config["steering"]["accuracy_margin"],
        nll_margin=config["steering"]["nll_margin"],
        pairs=len(OWN["models"]) * len(OWN["questions"]),  # of the whole study,
        min_group=config["calibration"]["min_group"],
        n_bins=config["calibration"]["n_bins"][0],
        draws=config["calibration"]["draws"],
        seed=config["seed"],
    message:
        "Evaluating steering of {wildcards.model} on {wildcards.questions}"
    shell:
        "python -m layercal.stages.sweep --prompts {input.prompts}"
        " --directions {input.directions} --dimensions {input.dimensions} --phase {input.phase}"
        " --logits {input.logits} --estimators {params.estimators} --ranks {params.ranks}"
        " --alphas {params.alphas} --min-group {params.min_group}"
        " --accuracy-margin {params.accuracy_margin} --nll-margin {params.nll_margin}"
        " --pairs {params.pairs} --n-bins {params.n_bins}"
        " --draws {params.draws} --seed {params.seed} --out {output.sweep}"
        " --summary {output.summary} --log {log}"
