# The same two steps for every experiment included before; a caption cannot hold a wildcard, hence the loop.
for stage in stages():

    rule:
        name:
            f"draw_{stage}"
        input:
            table=f"<results>/{stage}/table.parquet",
        output:
            figure=report(
                f"<results>/{stage}/figure.svg",
                caption=f"../report/{stage}.rst",
                category=stage,
                labels={"artefact": "figure"},
            ),
        log:
            f"<logs>/{stage}/figure.log",
        threads: 1
        resources:
            mem="2GB",
            runtime="5m",
        params:
            stage=stage,
            code=code_digest(f"jaxinterp.experiments.{stage}"),
        shell:
            "jaxinterp figure {params.stage:q} --table {input.table:q} --output {output.figure:q} 2>&1 | tee {log:q}"

    rule:
        name:
            f"check_{stage}"
        input:
            table=f"<results>/{stage}/table.parquet",
        output:
            check=report(
                f"<results>/{stage}/check.json",
                caption=f"../report/{stage}.rst",
                category=stage,
                labels={"artefact": "claims"},
            ),
        log:
            f"<logs>/{stage}/check.log",
        threads: 1
        resources:
            mem="2GB",
            runtime="5m",
        params:
            stage=stage,
            code=code_digest(f"jaxinterp.experiments.{stage}"),
        shell:
            "jaxinterp check {params.stage:q} --table {input.table:q} --output {output.check:q} 2>&1 | tee {log:q}"


rule write_report:
    input:
        tables=expand("<results>/{stage}/table.{kind}", stage=stages(), kind=["parquet", "csv"]),
        figures=expand("<results>/{stage}/figure.svg", stage=stages()),
        checks=expand("<results>/{stage}/check.json", stage=stages()),
        captions=[caption(name) for name in ["workflow", *stages()]],
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
        stages=stages(),
        results=subpath(output.page, parent=True),
        models=lambda wildcards, input: Path(input.models[0]).parents[1],
        captions=lambda wildcards, input: Path(input.captions[0]).parent,
        code=code_digest("jaxinterp.figures.report"),
    shell:
        "jaxinterp report {params.stages:q} --results {params.results:q} --models {params.models:q}"
        " --captions {params.captions:q} --output {output.page:q} 2>&1 | tee {log:q}"
