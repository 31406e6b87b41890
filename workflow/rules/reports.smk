# REQUIRED INPUTS: results/extract, results/lens, results/directions, results/steering,
#                  resources/, reports/notebooks/
# OUTPUTS: reports/rendered/{model}-{questions}.html (and .ipynb, .png),
#          {model}-{questions}/figures/ (each figure as PDF and CSV, claims.tex),
#          atlas.html (and .pdf, .csv), workflow.png (and .pdf), explore.html, index.html

# of every report; src/layercal/plates.py draws them
FIGURES = [
    "layer-curves",
    "depth-curves",
    "reliability",
    "letters",
    "lenses",
    "categories",
    "languages",
    "category-map",
    "subject-map",
    "cosines",
    "dimensions",
    "dose-lens",
    "dose-network",
    "dose-everywhere",
    "transfer",
    "null-space",
    "neurons",
    "attribution",
]


rule reports:
    input:
        "reports/rendered/index.html",
        "reports/rendered/explore.html",


rule draw_figures:
    input:
        prompts="results/extract/{model}/{questions}/prompts.parquet",
        options="results/lens/{model}/{questions}/options.parquet",
        metrics="results/lens/{model}/{questions}/metrics.parquet",
        phase="results/lens/{model}/{questions}/phase.json",
        directions="results/directions/{model}/{questions}/directions.parquet",
        dimensions="results/directions/{model}/{questions}/dimensions.parquet",
        nullspace="results/directions/{model}/{questions}/nullspace.parquet",
        neurons="results/directions/{model}/{questions}/neurons.parquet",
        sweep="results/steering/{model}/{questions}/sweep.parquet",
        summary="results/steering/{model}/{questions}/summary.json",
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "calibration",
                "dimensions",
                "figures",
                "paired",
                "plates",
                "questions",
                "readings",
                "resampling",
                "sources",
                "tally",
                "stages/figure",
            ],
        ),
    output:
        png=report(
            "reports/rendered/{model}-{questions}.png",
            caption="../report/curves.rst",
            category="Layer curves",
            labels={"model": "{model}", "questions": "{questions}"},
        ),
        pdfs=expand("reports/rendered/{{model}}-{{questions}}/figures/{figure}.pdf", figure=FIGURES),
        csvs=expand("reports/rendered/{{model}}-{{questions}}/figures/{figure}.csv", figure=FIGURES),
        claims="reports/rendered/{model}-{questions}/figures/claims.tex",
    log:
        "logs/reports/{model}-{questions}.figure.log",
    benchmark:
        "logs/benchmarks/reports/{model}-{questions}.figure.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    message:
        "Drawing the figures of {wildcards.model} on {wildcards.questions}"
    shell:
        "python -m layercal.stages.figure --prompts {input.prompts} --options {input.options}"
        " --metrics {input.metrics} --phase {input.phase} --directions {input.directions}"
        " --dimensions {input.dimensions} --nullspace {input.nullspace}"
        " --neurons {input.neurons} --sweep {input.sweep} --summary {input.summary}"
        " --png {output.png} --pdfs {output.pdfs} --csvs {output.csvs} --claims {output.claims}"
        " --log {log}"


rule render_report:
    input:
        notebook="reports/notebooks/report.ipynb",
        manifest="resources/models/{model}/manifest.json",
        rejected="resources/questions/{questions}.rejected.csv",
        prompts="results/extract/{model}/{questions}/prompts.parquet",
        options="results/lens/{model}/{questions}/options.parquet",
        metrics="results/lens/{model}/{questions}/metrics.parquet",
        phase="results/lens/{model}/{questions}/phase.json",
        directions="results/directions/{model}/{questions}/directions.parquet",
        dimensions="results/directions/{model}/{questions}/dimensions.parquet",
        nullspace="results/directions/{model}/{questions}/nullspace.parquet",
        neurons="results/directions/{model}/{questions}/neurons.parquet",
        sweep="results/steering/{model}/{questions}/sweep.parquet",
        summary="results/steering/{model}/{questions}/summary.json",
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "calibration",
                "dimensions",
                "figures",
                "pages",
                "paired",
                "plates",
                "questions",
                "readings",
                "resampling",
                "sources",
                "tally",
                "stages/report",
            ],
        ),
    output:
        notebook="reports/rendered/{model}-{questions}.ipynb",
        html=report(
            "reports/rendered/{model}-{questions}.html",
            caption="../report/report.rst",
            category="Reports",
            labels={"model": "{model}", "questions": "{questions}"},
        ),
    log:
        "logs/reports/{model}-{questions}.log",
    benchmark:
        "logs/benchmarks/reports/{model}-{questions}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    message:
        "Rendering the report of {wildcards.model} on {wildcards.questions}"
    shell:
        "python -m layercal.stages.report --notebook {input.notebook}"
        " --model {wildcards.model} --questions {wildcards.questions}"
        " --manifest {input.manifest} --rejected {input.rejected} --prompts {input.prompts}"
        " --options {input.options} --metrics {input.metrics} --phase {input.phase}"
        " --directions {input.directions} --dimensions {input.dimensions}"
        " --nullspace {input.nullspace} --neurons {input.neurons} --sweep {input.sweep}"
        " --summary {input.summary} --out {output.notebook} --html {output.html} --log {log}"


rule render_atlas:
    input:
        metrics=expand(
            "results/lens/{model}/{questions}/metrics.parquet",
            model=config["models"],
            questions=config["questions"],
        ),
        phases=expand(
            "results/lens/{model}/{questions}/phase.json",
            model=config["models"],
            questions=config["questions"],
        ),
        summaries=expand(
            "results/steering/{model}/{questions}/summary.json",
            model=config["models"],
            questions=config["questions"],
        ),
        code=expand(
            "src/layercal/{module}.py", module=["figures", "pages", "sources", "stages/atlas"]
        ),
    output:
        html=report(
            "reports/rendered/atlas.html", caption="../report/atlas.rst", category="Overview"
        ),
        pdf="reports/rendered/atlas.pdf",
        csv="reports/rendered/atlas.csv",
    log:
        "logs/reports/atlas.log",
    benchmark:
        "logs/benchmarks/reports/atlas.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        reports=expand("{model}-{questions}", model=config["models"], questions=config["questions"]),
    message:
        "Rendering the atlas of all models and question sets"
    shell:
        "python -m layercal.stages.atlas --reports {params.reports} --metrics {input.metrics}"
        " --phases {input.phases} --summaries {input.summaries} --out {output.html}"
        " --pdf {output.pdf} --csv {output.csv} --log {log}"


rule draw_workflow:
    input:
        rules=[
            "Snakefile",
            *expand(
                "workflow/rules/{phase}.smk",
                phase=["fetch", "extract", "lens", "directions", "steering", "reports"],
            ),
        ],
        code=expand("src/layercal/{module}.py", module=["figures", "stages/rulegraph"]),
    output:
        png=report(
            "reports/rendered/workflow.png", caption="../report/rules.rst", category="Overview"
        ),
        pdf="reports/rendered/workflow.pdf",
    log:
        "logs/reports/workflow.log",
    benchmark:
        "logs/benchmarks/reports/workflow.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Drawing the rules of this workflow"
    shell:
        "snakemake --rulegraph dot reports 2> {log} | python -m layercal.stages.rulegraph"
        " --png {output.png} --pdf {output.pdf} --log {log}"


rule render_index:
    input:
        html=expand(
            "reports/rendered/{model}-{questions}.html",
            model=config["models"],
            questions=config["questions"],
        ),
        figures=expand(
            "reports/rendered/{model}-{questions}.png",
            model=config["models"],
            questions=config["questions"],
        ),
        phases=expand(
            "results/lens/{model}/{questions}/phase.json",
            model=config["models"],
            questions=config["questions"],
        ),
        atlas="reports/rendered/atlas.html",
        workflow="reports/rendered/workflow.png",
        code=expand("src/layercal/{module}.py", module=["pages", "sources", "stages/index"]),
    output:
        html=report(
            "reports/rendered/index.html", caption="../report/index.rst", category="Overview"
        ),
    log:
        "logs/reports/index.log",
    benchmark:
        "logs/benchmarks/reports/index.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Rendering the index of reports"
    shell:
        "python -m layercal.stages.index --reports {input.html} --phases {input.phases}"
        " --out {output.html} --log {log}"


rule render_explorer:
    input:
        page="reports/explorer/page.html",
        script="reports/explorer/page.js",
        texts=expand("resources/questions/{questions}.parquet", questions=config["questions"]),
        prompts=expand(
            "results/extract/{model}/{questions}/prompts.parquet",
            model=config["models"],
            questions=config["questions"],
        ),
        options=expand(
            "results/lens/{model}/{questions}/options.parquet",
            model=config["models"],
            questions=config["questions"],
        ),
        metrics=expand(
            "results/lens/{model}/{questions}/metrics.parquet",
            model=config["models"],
            questions=config["questions"],
        ),
        phase=expand(
            "results/lens/{model}/{questions}/phase.json",
            model=config["models"],
            questions=config["questions"],
        ),
        directions=expand(
            "results/directions/{model}/{questions}/directions.safetensors",
            model=config["models"],
            questions=config["questions"],
        ),
        sweep=expand(
            "results/steering/{model}/{questions}/sweep.parquet",
            model=config["models"],
            questions=config["questions"],
        ),
        logits=expand(
            "results/steering/{model}/{questions}/logits-{shard}.safetensors",
            model=config["models"],
            questions=config["questions"],
            shard=SHARDS,
        ),
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "calibration",
                "charts",
                "dimensions",
                "explorer",
                "figures",
                "paired",
                "plates",
                "questions",
                "readings",
                "resampling",
                "sources",
                "tally",
                "stages/explore",
            ],
        ),
    output:
        html=report(
            "reports/rendered/explore.html",
            caption="../report/explore.rst",
            category="Reports",
        ),
    log:
        "logs/reports/explore.log",
    benchmark:
        "logs/benchmarks/reports/explore.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        pairs=expand("{model}/{questions}", model=config["models"], questions=config["questions"]),
    message:
        "Rendering the interactive page"
    shell:
        "python -m layercal.stages.explore --pairs {params.pairs} --prompts {input.prompts}"
        " --options {input.options} --metrics {input.metrics} --phase {input.phase}"
        " --directions {input.directions} --sweep {input.sweep} --logits {input.logits}"
        " --texts {input.texts} --page {input.page} --script {input.script}"
        " --out {output.html} --log {log}"
