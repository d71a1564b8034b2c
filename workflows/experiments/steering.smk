configfile: workflow.source_path("../config/steering.yaml")


read_section("steering")


rule steering:
    input:
        "<results>/steering/table.csv",
        "<results>/steering/figure.svg",
        "<results>/steering/check.json",
    localrule: True


rule measure_steering:
    input:
        **model_records("steering"),
        alignment="<results>/alignment/maps.safetensors",
    output:
        table="<results>/steering/table.parquet",
        csv=report(
            "<results>/steering/table.csv",
            caption="../report/steering.rst",
            category="steering",
            labels={"artefact": "table"},
        ),
    log:
        "<logs>/steering/measure.log",
    benchmark:
        "<benchmarks>/steering.tsv"
    threads: 2
    resources:
        mem="6GB",
        runtime="30m",
    params:
        models=model_flags("steering"),
        config=as_json(config["steering"]["config"]),
        code=code_digest("jaxinterp.experiments.steering"),
    shell:
        "jaxinterp run steering --config {params.config:q} --model {params.models:q}"
        " --input alignment={input.alignment:q} --output {output.table:q} 2>&1 | tee {log:q}"
