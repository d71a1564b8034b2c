configfile: workflow.source_path("../config/ablation.yaml")


read_section("ablation")


rule ablation:
    input:
        "<results>/ablation/table.csv",
        "<results>/ablation/figure.svg",
        "<results>/ablation/check.json",
    localrule: True


rule measure_ablation:
    input:
        **model_records("ablation"),
    output:
        table="<results>/ablation/table.parquet",
        csv=report(
            "<results>/ablation/table.csv",
            caption="../report/ablation.rst",
            category="ablation",
            labels={"artefact": "table"},
        ),
    log:
        "<logs>/ablation/measure.log",
    benchmark:
        "<benchmarks>/ablation.tsv"
    threads: 2
    resources:
        mem="6GB",
        runtime="30m",
    params:
        models=model_flags("ablation"),
        config=as_json(config["ablation"]["config"]),
        code=code_digest("jaxinterp.experiments.ablation"),
    shell:
        "jaxinterp run ablation --config {params.config:q} --model {params.models:q}"
        " --output {output.table:q} 2>&1 | tee {log:q}"
