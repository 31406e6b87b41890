# REQUIRED INPUTS: results/{study}/ extract, lens, ablation, directions and steering,
#                  resources/, reports/notebooks/
# OUTPUTS: reports/rendered/{study}/{model}/{questions}.html (and .ipynb, .png),
#          {model}/figures/{questions}/ (each figure as PDF, PNG and CSV, claims.tex),
#          atlas.html (and .pdf, .csv), workflow.png (and .pdf), explore.html, index.html;
#          reports/bundles/{study}/, a copy of all that for snakemake --report

PAGES = ["index.html", "explore.html", "atlas.html", "atlas.pdf", "atlas.csv"]
PAGES += ["workflow.png", "workflow.pdf"]
PHASES = ["fetch", "extract", "lens", "ablation", "directions", "steering", "reports"]
NOTEBOOK = beside("reports/notebooks/report.ipynb")
FIGURES = figure_names()
# what figures and reports show, each under the name of its file
TABLES = [
    "<results>/extract/{model}/{questions}/prompts.parquet",
    "<results>/lens/{model}/{questions}/options.parquet",
    "<results>/lens/{model}/{questions}/metrics.parquet",
    "<results>/lens/{model}/{questions}/phase.json",
    "<results>/lens/{model}/{questions}/phases.parquet",
    "<results>/lens/{model}/{questions}/recalibration.parquet",
    "<results>/lens/{model}/{questions}/recalibrated-phase.json",
    "<results>/lens/{model}/{questions}/steps.parquet",
    "<results>/lens/{model}/{questions}/rivals.parquet",
    "<results>/directions/{model}/{questions}/directions.parquet",
    "<results>/directions/{model}/{questions}/dimensions.parquet",
    "<results>/ablation/{model}/{questions}/nullspace.parquet",
    "<results>/ablation/{model}/{questions}/neurons.parquet",
    "<results>/ablation/{model}/{questions}/norm.parquet",
    "<results>/ablation/{model}/{questions}/blocks.parquet",
    "<results>/steering/{model}/{questions}/sweep.parquet",
    "<results>/steering/{model}/{questions}/summary.json",
]
TEMPLATES = {
    path.name: seen_from_here(path) for path in sorted((SOURCE / "report/templates").iterdir())
}


rule reports:
    input:
        expand(
            "<reports>/{model}/{questions}.{kind}",
            model=config["models"],
            questions=config["questions"],
            kind=["html", "png"],
        ),
        expand("<reports>/{page}", page=of_whole_study(*PAGES)),
        deleted("reports"),


rule draw_figures:
    input:
        tables=TABLES,
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
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        code=digest_of("draw_figures"),
    message:
        "Drawing the figures of {wildcards.model} on {wildcards.questions}"
    shell:
        stage("draw_figures")


rule render_report:
    input:
        notebook=NOTEBOOK,
        templates=list(TEMPLATES.values()),
        figures=expand("<reports>/{{model}}/figures/{{questions}}/{figure}.png", figure=FIGURES),
        manifest="resources/models/{model}/manifest.json",
        rejected="resources/questions/{questions}.rejected.csv",
        tables=TABLES,
    output:
        executed="<reports>/{model}/{questions}.ipynb",
        html="<reports>/{model}/{questions}.html",
    log:
        "<logs>/reports/{model}/{questions}/report.log",
    benchmark:
        "<benchmarks>/reports/{model}/{questions}/report.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        code=digest_of("render_report", beside=[NOTEBOOK]),
    message:
        "Rendering the report of {wildcards.model} on {wildcards.questions}"
    shell:
        stage("render_report")


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
        recalibrations=expand(
            "<results>/lens/{model}/{questions}/recalibration.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        recalibrated_phases=expand(
            "<results>/lens/{model}/{questions}/recalibrated-phase.json",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        summaries=expand(
            "<results>/steering/{model}/{questions}/summary.json",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        comparisons="<results>/lens/comparisons.parquet",
        templates=list(TEMPLATES.values()),
    output:
        html="<reports>/atlas.html",
        pdf="<reports>/atlas.pdf",
        csv="<reports>/atlas.csv",
    log:
        "<logs>/reports/atlas.log",
    benchmark:
        "<benchmarks>/reports/atlas.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        code=digest_of("render_atlas"),
        pairs=expand("{model}/{questions}", model=OWN["models"], questions=OWN["questions"]),
    message:
        "Rendering the atlas of all models and question sets"
    shell:
        stage("render_atlas")


rule draw_workflow:
    input:
        rules=[
            beside("workflow/Snakefile"),
            *(beside(f"workflow/rules/{phase}.smk") for phase in PHASES),
        ],
    output:
        png=report("<reports>/workflow.png", caption="../report/rules.rst", category="Overview"),
        pdf="<reports>/workflow.pdf",
    log:
        "<logs>/reports/workflow.log",
    benchmark:
        "<benchmarks>/reports/workflow.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=digest_of("draw_workflow"),
    message:
        "Drawing the rules of this workflow"
    shell:
        # the target's name has a prefix where another workflow takes this one as a module
        "rule={rule}; snakemake --cores 1 --rulegraph dot ${{rule/draw_workflow/reports}} 2> {log} | "
        + stage("draw_workflow")


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
        recalibrations=expand(
            "<results>/lens/{model}/{questions}/recalibration.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        recalibrated_phases=expand(
            "<results>/lens/{model}/{questions}/recalibrated-phase.json",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        atlas="<reports>/atlas.html",
        workflow="<reports>/workflow.png",
        templates=list(TEMPLATES.values()),
    output:
        html="<reports>/index.html",
    log:
        "<logs>/reports/index.log",
    benchmark:
        "<benchmarks>/reports/index.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=digest_of("render_index"),
        pairs=expand("{model}/{questions}", model=OWN["models"], questions=OWN["questions"]),
    message:
        "Rendering the index of reports"
    shell:
        stage("render_index")


rule render_explorer:
    input:
        page=TEMPLATES["explore.html"],
        script=TEMPLATES["explore.js"],
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
    output:
        html="<reports>/explore.html",
    log:
        "<logs>/reports/explore.log",
    benchmark:
        "<benchmarks>/reports/explore.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        code=digest_of("render_explorer"),
        pairs=expand("{model}/{questions}", model=OWN["models"], questions=OWN["questions"]),
    message:
        "Rendering the interactive page"
    shell:
        stage("render_explorer")


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
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Gathering all pages for snakemake --report"
    shell:
        "(mkdir -p {output} && cp -R $(dirname {input.index})/. {output}) 2> {log}"
