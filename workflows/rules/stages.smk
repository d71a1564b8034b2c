rule draw_figure:
    input:
        table="<results>/{experiment}/table.parquet",
    output:
        figure=report(
            "<results>/{experiment}/figure.svg",
            caption="../report/{experiment}.rst",
            category="{experiment}",
            labels={"artefact": "figure"},
        ),
    log:
        "<logs>/{experiment}/figure.log",
    threads: 1
    resources:
        mem="2GB",
        runtime="5m",
    params:
        code=lambda wildcards: code_digest(f"jaxinterp.experiments.{wildcards.experiment}"),
    shell:
        "jaxinterp figure {wildcards.experiment:q} --table {input.table:q} --output {output.figure:q} 2>&1 | tee {log:q}"


rule check_claims:
    input:
        table="<results>/{experiment}/table.parquet",
    output:
        check=report(
            "<results>/{experiment}/check.json",
            caption="../report/{experiment}.rst",
            category="{experiment}",
            labels={"artefact": "claims"},
        ),
    log:
        "<logs>/{experiment}/check.log",
    threads: 1
    resources:
        mem="2GB",
        runtime="5m",
    params:
        code=lambda wildcards: code_digest(f"jaxinterp.experiments.{wildcards.experiment}"),
    shell:
        "jaxinterp check {wildcards.experiment:q} --table {input.table:q} --output {output.check:q} 2>&1 | tee {log:q}"


rule write_report:
    input:
        tables=lambda wildcards: expand("<results>/{stage}/table.{kind}", stage=stages(), kind=["parquet", "csv"]),
        figures=lambda wildcards: expand("<results>/{stage}/figure.svg", stage=stages()),
        checks=lambda wildcards: expand("<results>/{stage}/check.json", stage=stages()),
        captions=lambda wildcards: [caption(name) for name in ["workflow", *stages()]],
        models=expand("<resources>/models/{model}/source.json", model=config["models"]),
        pages=rules.models.input,
    output:
        page="<results>/report.html",
    log:
        "<logs>/report.log",
    threads: 1
    resources:
        mem="2GB",
        runtime="5m",
    params:
        stages=lambda wildcards: stages(),
        results=subpath(output.page, parent=True),
        models=lambda wildcards, input: Path(input.models[0]).parents[1],
        captions=lambda wildcards, input: Path(input.captions[0]).parent,
        code=code_digest("jaxinterp.figures.report"),
    shell:
        "jaxinterp report {params.stages:q} --results {params.results:q} --models {params.models:q}"
        " --captions {params.captions:q} --output {output.page:q} 2>&1 | tee {log:q}"
