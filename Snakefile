# From fetched weights to one report:
#   snakemake --profile workflows/profiles/local
#   snakemake --profile workflows/profiles/local probing                      one experiment alone
#   snakemake --profile workflows/profiles/local --configfile mine.yaml       other models or settings
#   snakemake --profile workflows/profiles/local self_verification            every experiment of a paper
#   snakemake --profile workflows/profiles/local embedding_geometry           the same of the other one
#   snakemake --profile workflows/profiles/local train_countdown              train small models of the kind that is studied
#   snakemake --profile workflows/profiles/local benchmarks                   measure against the peers, on an idle machine
from snakemake.utils import min_version

min_version("9.27")


configfile: workflow.source_path("workflows/config/default.yaml")


include: "workflows/rules/common.smk"


refuse_unreachable_storage()


# Used with --software-deployment-method apptainer only; containers/README.md says how to build it.
container: image()


report: "workflows/report/workflow.rst"


include: "workflows/rules/models.smk"
include: "workflows/experiments/embedding_geometry.smk"
include: "workflows/experiments/self_verification.smk"


# What `all` runs, in the order of its report.
CHAIN = ["alignment", "steering", "verdicts", "probing", "ablation"]


include: "workflows/rules/stages.smk"
include: "workflows/rules/benchmarks.smk"
include: "workflows/rules/training.smk"
include: "workflows/rules/distributed.smk"


refuse_unknown_sections()


rule all:
    default_target: True
    input:
        expand("<results>/{stage}/{file}", stage=CHAIN, file=["table.csv", "figure.svg", "check.json"]),
        page="<results>/report.html",
    localrule: True
