configfile: workflow.source_path("../config/probing.yaml")


read_section("probing")


rule probing:
    input:
        "<results>/probing/table.csv",
        "<results>/probing/figure.svg",
        "<results>/probing/check.json",
    localrule: True


rule measure_probing:
    input:
        **model_records("probing"),
    output:
        table="<results>/probing/table.parquet",
        csv=report(
            "<results>/probing/table.csv",
            caption="../report/probing.rst",
            category="probing",
            labels={"artefact": "table"},
        ),
    log:
        "<logs>/probing/measure.log",
    benchmark:
        "<benchmarks>/probing.tsv"
    threads: 2
    resources:
        mem="6GB",
        runtime="30m",
    params:
        models=model_flags("probing"),
        config=as_json(config["probing"]["config"]),
        code=code_digest("jaxinterp.experiments.probing"),
    shell:
        "jaxinterp run probing --config {params.config:q} --model {params.models:q}"
        " --output {output.table:q} 2>&1 | tee {log:q}"
