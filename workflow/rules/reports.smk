# REQUIRED INPUTS: results/{study}/ extract, lens, directions and steering, resources/,
#                  reports/notebooks/
# OUTPUTS: reports/rendered/{study}/{model}/{questions}.html (and .ipynb, .png),
#          {model}/figures/{questions}/ (each figure as PDF, PNG and CSV, claims.tex),
#          atlas.html (and .pdf, .csv), workflow.png (and .pdf), explore.html, index.html;
#          reports/bundles/{study}/, a copy of all that for snakemake --report

PAGES = ["index.html", "explore.html", "atlas.html", "atlas.pdf", "atlas.csv"]
PAGES += ["workflow.png", "workflow.pdf"]
FIGURES = figure_names()
TEMPLATES = [str(path) for path in sorted(Path("src/layercal/report/templates").iterdir())]


rule reports:
    input:
        expand(
            "<reports>/{model}/{questions}.{kind}",
            model=config["models"],
            questions=config["questions"],
            kind=["html", "png"],
        ),
        # these show the whole study: a run of some of its models leaves them as they are
        expand(
            "<reports>/{page}",
            page=(
                PAGES
                if all(set(OWN[key]) <= set(config[key]) for key in ("models", "questions"))
                else []
            ),
        ),
        deleted("reports"),


rule draw_figures:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        options="<results>/lens/{model}/{questions}/options.parquet",
        metrics="<results>/lens/{model}/{questions}/metrics.parquet",
        phase="<results>/lens/{model}/{questions}/phase.json",
        directions="<results>/directions/{model}/{questions}/directions.parquet",
        dimensions="<results>/directions/{model}/{questions}/dimensions.parquet",
        nullspace="<results>/directions/{model}/{questions}/nullspace.parquet",
        neurons="<results>/directions/{model}/{questions}/neurons.parquet",
        sweep="<results>/steering/{model}/{questions}/sweep.parquet",
        summary="<results>/steering/{model}/{questions}/summary.json",
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "files",
                "metrics/calibration",
                "metrics/paired",
                "metrics/readings",
                "metrics/resampling",
                "report/figures/__init__",
                "report/figures/ablation",
                "report/figures/curves",
                "report/figures/directions",
                "report/figures/groups",
                "report/figures/registry",
                "report/figures/reliability",
                "report/figures/steering",
                "report/style",
                "report/tables",
                "results",
                "sources/questions",
                "steering/dimensions",
                "steering/tally",
                "stages/figure",
            ],
        ),
    output:
        png=report(
            "<reports>/{model}/{questions}.png",
            caption="../report/curves.rst",
            category="Layer curves",
            labels={"model": "{model}", "questions": "{questions}"},
        ),
        pdfs=expand("<reports>/{{model}}/figures/{{questions}}/{figure}.pdf", figure=FIGURES),
        pngs=expand("<reports>/{{model}}/figures/{{questions}}/{figure}.png", figure=FIGURES),
        csvs=expand("<reports>/{{model}}/figures/{{questions}}/{figure}.csv", figure=FIGURES),
        claims="<reports>/{model}/figures/{questions}/claims.tex",
    log:
        "<logs>/reports/{model}/{questions}/figures.log",
    benchmark:
        "<benchmarks>/reports/{model}/{questions}/figures.tsv"
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
        " --title '{wildcards.model} on {wildcards.questions}'"
        " --png {output.png} --pdfs {output.pdfs} --pngs {output.pngs} --csvs {output.csvs}"
        " --claims {output.claims} --log {log}"


rule render_report:
    input:
        notebook="reports/notebooks/report.ipynb",
        templates=TEMPLATES,
        figures=expand("<reports>/{{model}}/figures/{{questions}}/{figure}.png", figure=FIGURES),
        manifest="resources/models/{model}/manifest.json",
        rejected="resources/questions/{questions}.rejected.csv",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        options="<results>/lens/{model}/{questions}/options.parquet",
        metrics="<results>/lens/{model}/{questions}/metrics.parquet",
        phase="<results>/lens/{model}/{questions}/phase.json",
        directions="<results>/directions/{model}/{questions}/directions.parquet",
        dimensions="<results>/directions/{model}/{questions}/dimensions.parquet",
        nullspace="<results>/directions/{model}/{questions}/nullspace.parquet",
        neurons="<results>/directions/{model}/{questions}/neurons.parquet",
        sweep="<results>/steering/{model}/{questions}/sweep.parquet",
        summary="<results>/steering/{model}/{questions}/summary.json",
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "files",
                "metrics/calibration",
                "metrics/paired",
                "metrics/readings",
                "metrics/resampling",
                "report/figures/__init__",
                "report/figures/ablation",
                "report/figures/curves",
                "report/figures/directions",
                "report/figures/groups",
                "report/figures/registry",
                "report/figures/reliability",
                "report/figures/steering",
                "report/notebook",
                "report/pages",
                "report/style",
                "report/tables",
                "report/words",
                "results",
                "sources/questions",
                "steering/dimensions",
                "steering/tally",
                "stages/report",
            ],
        ),
    output:
        notebook="<reports>/{model}/{questions}.ipynb",
        html="<reports>/{model}/{questions}.html",
    log:
        "<logs>/reports/{model}/{questions}/report.log",
    benchmark:
        "<benchmarks>/reports/{model}/{questions}/report.tsv"
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
        " --summary {input.summary} --figures {input.figures}"
        " --out {output.notebook} --html {output.html} --log {log}"


rule render_atlas:
    input:
        metrics=expand(
            "<results>/lens/{model}/{questions}/metrics.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        phases=expand(
            "<results>/lens/{model}/{questions}/phase.json",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        summaries=expand(
            "<results>/steering/{model}/{questions}/summary.json",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "files",
                "metrics/calibration",
                "metrics/paired",
                "metrics/readings",
                "metrics/resampling",
                "report/atlas",
                "report/figures/__init__",
                "report/figures/ablation",
                "report/figures/curves",
                "report/figures/directions",
                "report/figures/groups",
                "report/figures/registry",
                "report/figures/reliability",
                "report/figures/steering",
                "report/figures/study",
                "report/pages",
                "report/style",
                "results",
                "sources/questions",
                "steering/dimensions",
                "steering/tally",
                "stages/atlas",
            ],
        ),
        templates=TEMPLATES,
    output:
        html="<reports>/atlas.html",
        pdf="<reports>/atlas.pdf",
        csv="<reports>/atlas.csv",
    log:
        "<logs>/reports/atlas.log",
    benchmark:
        "<benchmarks>/reports/atlas.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        pairs=expand("{model}/{questions}", model=OWN["models"], questions=OWN["questions"]),
    message:
        "Rendering the atlas of all models and question sets"
    shell:
        "python -m layercal.stages.atlas --pairs {params.pairs} --metrics {input.metrics}"
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
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "files",
                "metrics/calibration",
                "metrics/paired",
                "metrics/readings",
                "metrics/resampling",
                "report/figures/__init__",
                "report/figures/ablation",
                "report/figures/curves",
                "report/figures/directions",
                "report/figures/groups",
                "report/figures/registry",
                "report/figures/reliability",
                "report/figures/steering",
                "report/figures/study",
                "report/style",
                "results",
                "sources/questions",
                "steering/dimensions",
                "steering/tally",
                "stages/rulegraph",
            ],
        ),
    output:
        png=report("<reports>/workflow.png", caption="../report/rules.rst", category="Overview"),
        pdf="<reports>/workflow.pdf",
    log:
        "<logs>/reports/workflow.log",
    benchmark:
        "<benchmarks>/reports/workflow.tsv"
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
            "<reports>/{model}/{questions}.html",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        figures=expand(
            "<reports>/{model}/{questions}.png",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        phases=expand(
            "<results>/lens/{model}/{questions}/phase.json",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        atlas="<reports>/atlas.html",
        workflow="<reports>/workflow.png",
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "files",
                "report/index",
                "report/pages",
                "results",
                "stages/index",
            ],
        ),
        templates=TEMPLATES,
    output:
        html="<reports>/index.html",
    log:
        "<logs>/reports/index.log",
    benchmark:
        "<benchmarks>/reports/index.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        pairs=expand("{model}/{questions}", model=OWN["models"], questions=OWN["questions"]),
    message:
        "Rendering the index of reports"
    shell:
        "python -m layercal.stages.index --pairs {params.pairs} --phases {input.phases}"
        " --out {output.html} --log {log}"


rule render_explorer:
    input:
        page="src/layercal/report/templates/explore.html",
        script="src/layercal/report/templates/explore.js",
        texts=expand("resources/questions/{questions}.parquet", questions=OWN["questions"]),
        prompts=expand(
            "<results>/extract/{model}/{questions}/prompts.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        options=expand(
            "<results>/lens/{model}/{questions}/options.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        metrics=expand(
            "<results>/lens/{model}/{questions}/metrics.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        phase=expand(
            "<results>/lens/{model}/{questions}/phase.json",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        directions=expand(
            "<results>/directions/{model}/{questions}/directions.safetensors",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        sweep=expand(
            "<results>/steering/{model}/{questions}/sweep.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        logits=expand(
            "<results>/steering/{model}/{questions}/logits-{shard}.safetensors",
            model=OWN["models"],
            questions=OWN["questions"],
            shard=SHARDS,
        ),
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "files",
                "metrics/calibration",
                "metrics/paired",
                "metrics/readings",
                "metrics/resampling",
                "report/charts",
                "report/explorer",
                "report/style",
                "results",
                "sources/questions",
                "steering/tally",
                "stages/explore",
            ],
        ),
    output:
        html="<reports>/explore.html",
    log:
        "<logs>/reports/explore.log",
    benchmark:
        "<benchmarks>/reports/explore.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        pairs=expand("{model}/{questions}", model=OWN["models"], questions=OWN["questions"]),
    message:
        "Rendering the interactive page"
    shell:
        "python -m layercal.stages.explore --pairs {params.pairs} --prompts {input.prompts}"
        " --options {input.options} --metrics {input.metrics} --phase {input.phase}"
        " --directions {input.directions} --sweep {input.sweep} --logits {input.logits}"
        " --texts {input.texts} --page {input.page} --script {input.script}"
        " --out {output.html} --log {log}"


# Snakemake's report keeps what lies in one folder together, and so the pages' links alive
rule bundle:
    input:
        rules.reports.input,
        index="<reports>/index.html",
        explorer="<reports>/explore.html",
    output:
        report(
            directory("<bundles>"),
            htmlindex="index.html",
            caption="../report/index.rst",
            category="Pages",
        ),
    log:
        "<logs>/reports/bundle.log",
    benchmark:
        "<benchmarks>/reports/bundle.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Gathering all pages for snakemake --report"
    shell:
        "(mkdir -p {output} && cp -R $(dirname {input.index})/. {output}) 2> {log}"
