# Every experiment takes the same three steps; a caption cannot hold a wildcard, hence the loops.
for experiment, needs in {name: needs for parts in PAPERS.values() for name, needs in parts.items()}.items():

    rule:
        name:
            experiment
        input:
            f"<results>/{experiment}/table.csv",
            f"<results>/{experiment}/figure.svg",
            f"<results>/{experiment}/check.json",
        localrule: True

    rule:
        name:
            f"measure_{experiment}"
        input:
            **model_folders(experiment),
            **needs["inputs"],
        output:
            **({"arrays": f"<results>/{experiment}/{needs['arrays']}.safetensors"} if needs["arrays"] else {}),
            table=f"<results>/{experiment}/table.parquet",
            csv=report(
                f"<results>/{experiment}/table.csv",
                caption=f"../report/{experiment}.rst",
                category=experiment,
                labels={"artefact": "table"},
            ),
        log:
            f"<logs>/{experiment}/measure.log",
        benchmark:
            f"<benchmarks>/{experiment}.tsv"
        priority: needs["priority"]
        threads: config["threads"]
        resources:
            mem=config["memory"],
            runtime="30m",
        params:
            experiment=experiment,
            models=model_flags(experiment),
            inputs=input_flags(needs["inputs"]),
            arrays=lambda wildcards, output: ["--arrays", output.arrays] if "arrays" in output.keys() else [],
            config=as_json(config[experiment]["config"]),
            dtype=config["dtype"],
            backend=backend_flags(),
            code=code_digest(f"jaxinterp.experiments.{experiment}"),
        shell:
            "jaxinterp {params.backend:q} run {params.experiment:q} --config {params.config:q} --model {params.models:q}"
            " --dtype {params.dtype:q} {params.inputs:q} --output {output.table:q} {params.arrays:q} 2>&1 | tee {log:q}"

    rule:
        name:
            f"draw_{experiment}"
        input:
            table=f"<results>/{experiment}/table.parquet",
        output:
            figure=report(
                f"<results>/{experiment}/figure.svg",
                caption=f"../report/{experiment}.rst",
                category=experiment,
                labels={"artefact": "figure"},
            ),
        log:
            f"<logs>/{experiment}/figure.log",
        threads: 1
        resources:
            mem="2GB",
            runtime="5m",
        params:
            experiment=experiment,
            code=code_digest(f"jaxinterp.experiments.{experiment}"),
        shell:
            "jaxinterp figure {params.experiment:q} --table {input.table:q} --output {output.figure:q} 2>&1 | tee {log:q}"

    rule:
        name:
            f"check_{experiment}"
        input:
            table=f"<results>/{experiment}/table.parquet",
        output:
            check=report(
                f"<results>/{experiment}/check.json",
                caption=f"../report/{experiment}.rst",
                category=experiment,
                labels={"artefact": "claims"},
            ),
        log:
            f"<logs>/{experiment}/check.log",
        threads: 1
        resources:
            mem="2GB",
            runtime="5m",
        params:
            experiment=experiment,
            code=code_digest(f"jaxinterp.experiments.{experiment}"),
        shell:
            "jaxinterp check {params.experiment:q} --table {input.table:q} --output {output.check:q} 2>&1 | tee {log:q}"


# A paper: all its experiments, their claims in one list, and a report of its own.
for paper, parts in PAPERS.items():

    rule:
        name:
            paper
        input:
            f"<results>/{paper}/check.json",
            f"<results>/{paper}/report.html",
        localrule: True

    rule:
        name:
            f"gather_{paper}"
        input:
            checks=expand("<results>/{experiment}/check.json", experiment=parts),
        output:
            check=f"<results>/{paper}/check.json",
            table=f"<results>/{paper}/check.md",
        log:
            f"<logs>/{paper}/claims.log",
        threads: 1
        resources:
            mem="1GB",
            runtime="5m",
        params:
            experiments=list(parts),
            results=subpath(output.check, ancestor=2),
            code=code_digest("jaxinterp.experiments.claims"),
        shell:
            "jaxinterp claims {params.experiments:q} --results {params.results:q} --output {output.check:q} 2>&1"
            " | tee {log:q}"


# Page -> its experiments, and the caption that stands above them all.
REPORTS = {"<results>/report.html": (CHAIN, "workflow")}
REPORTS |= {f"<results>/{paper}/report.html": (list(parts), paper) for paper, parts in PAPERS.items()}
for page, (shown, introduction) in REPORTS.items():

    rule:
        name:
            f"report_{introduction}"
        input:
            tables=expand("<results>/{experiment}/table.{kind}", experiment=shown, kind=["parquet", "csv"]),
            figures=expand("<results>/{experiment}/figure.svg", experiment=shown),
            checks=expand("<results>/{experiment}/check.json", experiment=shown),
            introduction=local(caption(introduction)),
            captions=[local(caption(name)) for name in shown],
            models=expand("<resources>/models/{model}", model=models_of(shown)),
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
            experiments=shown,
            results=lambda wildcards, input: Path(input.tables[0]).parents[1],
            code=code_digest("jaxinterp.figures.report"),
        shell:
            "jaxinterp report {params.experiments:q} --results {params.results:q} --models {input.models:q}"
            " --introduction {input.introduction:q} --output {output.page:q} 2>&1 | tee {log:q}"
