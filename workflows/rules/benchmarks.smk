configfile: workflow.source_path("../config/benchmarks.yaml")


read_section("benchmarks")


# Not part of `all`: this measures, for about an hour, and wants the machine for itself.
rule benchmarks:
    input:
        "<results>/benchmarks/table.csv",
        "<results>/benchmarks/figure.svg",
    localrule: True


rule make_environment:
    output:
        versions="<resources>/benchmarks/{peer}/versions.txt",
    log:
        "<logs>/benchmarks/{peer}.log",
    wildcard_constraints:
        peer="|".join(peers()) or "none",
    retries: 1
    threads: 1
    resources:
        mem="2GB",
        runtime="30m",
    params:
        folder=subpath(output.versions, parent=True),
        lock=lambda wildcards: lock_file(wildcards.peer),
        digest=lambda wildcards: text_digest(lock_file(wildcards.peer)),
    shell:
        "python -m venv --clear {params.folder:q} 2>&1 | tee {log:q}\n"
        "{params.folder:q}/bin/python -m pip install --quiet -r {params.lock:q} 2>&1 | tee -a {log:q}\n"
        "{params.folder:q}/bin/python -m pip freeze > {output.versions:q}"


# "random:SHAPE" is made here; any other model is fetched.
RANDOM = config["models"][config["benchmarks"]["models"]["model"]].partition("random:")[2]
WEIGHTS = "model.safetensors.index.json" if RANDOM else "model.safetensors"


rule make_model:
    input:
        **({} if RANDOM else model_records("benchmarks")),
    output:
        settings="<resources>/benchmarks/model/config.json",
        weights=f"<resources>/benchmarks/model/{WEIGHTS}",
    log:
        "<logs>/benchmarks/export.log",
    threads: 1
    resources:
        mem="4GB",
        runtime="10m",
    params:
        folder=subpath(output.settings, parent=True),
        words=lambda wildcards, input: (
            ["random-model", "--shape", RANDOM, "--dtype", config["benchmarks"]["config"]["dtype"]]
            if RANDOM
            else ["export", input.model]
        ),
        code=code_digest("jaxinterp.models.language_model") + code_digest("jaxinterp.models.random_model"),
    shell:
        "rm -rf {params.folder:q} && jaxinterp {params.words:q} --output {params.folder:q} 2>&1 | tee {log:q}"


rule measure_benchmarks:
    input:
        model="<resources>/benchmarks/model/config.json",
        weights=f"<resources>/benchmarks/model/{WEIGHTS}",
        environments=expand("<resources>/benchmarks/{peer}/versions.txt", peer=peers()),
    output:
        table="<results>/benchmarks/table.parquet",
        csv=report(
            "<results>/benchmarks/table.csv",
            caption="../report/benchmarks.rst",
            category="benchmarks",
            labels={"artefact": "table"},
        ),
    log:
        "<logs>/benchmarks/measure.log",
    threads: lambda wildcards: workflow.cores
    resources:
        mem="8GB",
        runtime="3h",
    params:
        folder=subpath(input.model, parent=True),
        environments=subpath(input.model, ancestor=2),
        workers=ROOT / "workflows" / "peers",
        config=as_json(config["benchmarks"]["config"]),
        code=code_digest("jaxinterp.analysis.benchmark") + code_digest("jaxinterp"),
        scripts=text_digest(*sorted((ROOT / "workflows" / "peers").glob("*.py"))),
    shell:
        "jaxinterp benchmark {params.folder:q} --config {params.config:q} --workers {params.workers:q}"
        " --environments {params.environments:q} --output {output.table:q} 2>&1 | tee {log:q}"


rule draw_benchmarks:
    input:
        table="<results>/benchmarks/table.parquet",
    output:
        figure=report(
            "<results>/benchmarks/figure.svg",
            caption="../report/benchmarks.rst",
            category="benchmarks",
            labels={"artefact": "figure"},
        ),
    log:
        "<logs>/benchmarks/figure.log",
    threads: 1
    resources:
        mem="2GB",
        runtime="5m",
    params:
        code=code_digest("jaxinterp.figures.benchmark"),
    shell:
        "jaxinterp benchmark-figure --table {input.table:q} --output {output.figure:q} 2>&1 | tee {log:q}"
