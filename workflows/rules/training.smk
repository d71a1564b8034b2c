configfile: workflow.source_path("../config/train_countdown.yaml")


SECTIONS.append("train_countdown")
refuse_unknown_keys(
    config["train_countdown"],
    {"properties": {"supervised": {}, "grpo": {}}, "additionalProperties": False},
    "train_countdown",
)


# Not part of `all`: the models that the other targets study ship with the package.
rule train_countdown:
    input:
        expand("<results>/train_countdown/{stage}", stage=["supervised", "grpo"]),
        expand("<results>/train_countdown/{stage}.svg", stage=["supervised", "grpo"]),
    localrule: True


rule train_supervised:
    output:
        model=directory("<results>/train_countdown/supervised"),
    log:
        "<logs>/train_countdown/supervised.log",
    benchmark:
        "<benchmarks>/train_supervised.tsv"
    threads: 2
    resources:
        mem="8GB",
        runtime="4h",
    params:
        recipe=recipe("supervised"),
        backend=backend_flags(),
        code=code_digest("jaxinterp.training.recipe"),
    shell:
        "jaxinterp {params.backend:q} train {params.recipe:q} --output {output.model:q} 2>&1 | tee {log:q}"


rule train_grpo:
    input:
        start="<results>/train_countdown/supervised",
    output:
        model=directory("<results>/train_countdown/grpo"),
    log:
        "<logs>/train_countdown/grpo.log",
    benchmark:
        "<benchmarks>/train_grpo.tsv"
    threads: 2
    resources:
        mem="8GB",
        runtime="4h",
    params:
        recipe=recipe("grpo"),
        backend=backend_flags(),
        code=code_digest("jaxinterp.training.grpo_recipe"),
    shell:
        "jaxinterp {params.backend:q} train {params.recipe:q} --start {input.start:q} --output {output.model:q} 2>&1 | tee {log:q}"


rule draw_training:
    input:
        model="<results>/train_countdown/{stage}",
    output:
        figure="<results>/train_countdown/{stage}.svg",
    log:
        "<logs>/train_countdown/{stage}_figure.log",
    wildcard_constraints:
        stage="supervised|grpo",
    threads: 1
    resources:
        mem="2GB",
        runtime="5m",
    params:
        code=code_digest("jaxinterp.figures.training_log"),
    shell:
        "jaxinterp training-figure {input.model:q} --output {output.figure:q} 2>&1 | tee {log:q}"
