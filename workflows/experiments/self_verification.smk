configfile: workflow.source_path("../config/self_verification.yaml")


# Experiment -> what it reads of the others, besides models. Their order is that of the report.
PARTS = {
    "verdicts": {},
    "probing": {"verdicts": "<results>/verdicts/table.parquet"},
    "units": {"verdicts": "<results>/verdicts/table.parquet", "probes": "<results>/probing/directions.safetensors"},
    "ablation": {"verdicts": "<results>/verdicts/table.parquet"},
    "lens": {
        "verdicts": "<results>/verdicts/table.parquet",
        "ablation": "<results>/ablation/table.parquet",
        "units": "<results>/units/table.parquet",
    },
    "channels": {
        "verdicts": "<results>/verdicts/table.parquet",
        "ablation": "<results>/ablation/table.parquet",
        "units": "<results>/units/table.parquet",
        "probes": "<results>/probing/directions.safetensors",
    },
    "regeneration": {
        "verdicts": "<results>/verdicts/table.parquet",
        "ablation": "<results>/ablation/table.parquet",
        "units": "<results>/units/table.parquet",
    },
    "sufficiency": {
        "verdicts": "<results>/verdicts/table.parquet",
        "ablation": "<results>/ablation/table.parquet",
    },
    "verdict_steering": {
        "verdicts": "<results>/verdicts/table.parquet",
        "probes": "<results>/probing/directions.safetensors",
    },
    "finetuning": {
        "verdicts": "<results>/verdicts/table.parquet",
        "ablation": "<results>/ablation/table.parquet",
        "units": "<results>/units/table.parquet",
    },
    "in_context": {},
}


for part, inputs in PARTS.items():
    read_section(part)

    rule:
        name:
            part
        input:
            f"<results>/{part}/table.csv",
            f"<results>/{part}/figure.svg",
            f"<results>/{part}/check.json",
        localrule: True

    rule:
        name:
            f"measure_{part}"
        input:
            **model_records(part),
            **inputs,
        output:
            **({"arrays": "<results>/probing/directions.safetensors"} if part == "probing" else {}),
            table=f"<results>/{part}/table.parquet",
            csv=report(
                f"<results>/{part}/table.csv",
                caption=f"../report/{part}.rst",
                category=part,
                labels={"artefact": "table"},
            ),
        log:
            f"<logs>/{part}/measure.log",
        benchmark:
            f"<benchmarks>/{part}.tsv"
        threads: 2
        resources:
            mem="6GB",
            runtime="30m",
        params:
            experiment=part,
            models=model_flags(part),
            inputs=input_flags(inputs),
            arrays=lambda wildcards, output: ["--arrays", output.arrays] if "arrays" in output.keys() else [],
            config=as_json(config[part]["config"]),
            dtype=config["dtype"],
            code=code_digest(f"jaxinterp.experiments.{part}"),
        shell:
            "jaxinterp run {params.experiment:q} --config {params.config:q} --model {params.models:q}"
            " --dtype {params.dtype:q} {params.inputs:q} --output {output.table:q} {params.arrays:q} 2>&1 | tee {log:q}"


# The whole paper: every experiment above, its claims in one list, and a report of its own.
rule self_verification:
    input:
        "<results>/self_verification/check.json",
        "<results>/self_verification/report.html",
    localrule: True


rule gather_self_verification:
    input:
        checks=expand("<results>/{part}/check.json", part=PARTS),
    output:
        check="<results>/self_verification/check.json",
    log:
        "<logs>/self_verification/claims.log",
    threads: 1
    resources:
        mem="1GB",
        runtime="5m",
    params:
        parts=list(PARTS),
        results=subpath(output.check, ancestor=2),
        code=code_digest("jaxinterp.experiments.claims"),
    shell:
        "jaxinterp claims {params.parts:q} --results {params.results:q} --output {output.check:q} 2>&1 | tee {log:q}"
