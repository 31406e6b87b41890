# The workflow lies in workflow/; here a bare snakemake finds it.
include: "workflow/Snakefile"
