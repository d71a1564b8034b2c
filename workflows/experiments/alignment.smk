configfile: workflow.source_path("../config/alignment.yaml")


read_section("alignment")


rule alignment:
    input:
        "<results>/alignment/table.csv",
        "<results>/alignment/figure.svg",
        "<results>/alignment/check.json",
    localrule: True


rule measure_alignment:
    input:
        **model_records("alignment"),
    output:
        table="<results>/alignment/table.parquet",
        csv=report(
            "<results>/alignment/table.csv",
            caption="../report/alignment.rst",
            category="alignment",
            labels={"artefact": "table"},
        ),
        maps="<results>/alignment/maps.safetensors",
    log:
        "<logs>/alignment/measure.log",
    benchmark:
        "<benchmarks>/alignment.tsv"
    threads: 2
    resources:
        mem="6GB",
        runtime="30m",
    params:
        models=model_flags("alignment"),
        config=as_json(config["alignment"]["config"]),
        code=code_digest("jaxinterp.experiments.alignment"),
    shell:
        "jaxinterp run alignment --config {params.config:q} --model {params.models:q}"
        " --output {output.table:q} --arrays {output.maps:q} 2>&1 | tee {log:q}"
