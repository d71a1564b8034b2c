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


# Page -> its experiments, and the caption that stands above them all.
REPORTS = {
    "<results>/report.html": (CHAIN, "workflow"),
    "<results>/self_verification/report.html": (list(PARTS), "self_verification"),
}
for page, (shown, introduction) in REPORTS.items():

    rule:
        name:
            f"report_{introduction}"
        input:
            tables=expand("<results>/{stage}/table.{kind}", stage=shown, kind=["parquet", "csv"]),
            figures=expand("<results>/{stage}/figure.svg", stage=shown),
            checks=expand("<results>/{stage}/check.json", stage=shown),
            introduction=caption(introduction),
            captions=[caption(name) for name in shown],
            models=expand("<resources>/models/{model}/source.json", model=models_of(shown)),
            pages=expand("<results>/models/{model}/tree.html", model=models_of(shown)),
            edited=f"<results>/models/{config['edited']['model']}/edited.html",
        output:
            page=page,
        log:
            f"<logs>/report_{introduction}.log",
        threads: 1
        resources:
            mem="2GB",
            runtime="5m",
        params:
            stages=shown,
            results=lambda wildcards, input: Path(input.tables[0]).parents[1],
            code=code_digest("jaxinterp.figures.report"),
        shell:
            "jaxinterp report {params.stages:q} --results {params.results:q} --models {input.models:q}"
            " --introduction {input.introduction:q} --output {output.page:q} 2>&1 | tee {log:q}"
