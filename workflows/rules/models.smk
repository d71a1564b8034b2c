refuse_unknown_keys(
    config["edited"], {"properties": {"model": {}, "edit": {}}, "additionalProperties": False}, "edited"
)


rule models:
    input:
        expand("<results>/models/{model}/tree.html", model=config["models"]),
        f"<results>/models/{config['edited']['model']}/edited.html",
    localrule: True


rule fetch_model:
    output:
        model=directory("<resources>/models/{model}"),
    log:
        "<logs>/models/{model}.fetch.log",
    # Before any experiment: one that must wait for its model loses its place to a shorter one.
    priority: 9
    retries: 2
    threads: 1
    resources:
        mem="1GB",
        runtime="30m",
    params:
        source=lambda wildcards: config["models"][wildcards.model],
    shell:
        "jaxinterp fetch {params.source:q} --output {output.model:q} 2>&1 | tee {log:q}"


rule draw_model:
    input:
        model="<resources>/models/{model}",
    output:
        page=report(
            "<results>/models/{model}/tree.html",
            caption="../report/models.rst",
            category="models",
            labels={"model": "{model}", "page": "tree"},
        ),
    log:
        "<logs>/models/{model}.tree.log",
    threads: 1
    resources:
        mem="4GB",
        runtime="10m",
    params:
        code=code_digest("jaxinterp.analysis.pages"),
    shell:
        "jaxinterp inspect {input.model:q} --out {output.page:q} 2>&1 | tee {log:q}"


rule draw_edited_model:
    input:
        model="<resources>/models/{model}",
    output:
        page=report(
            "<results>/models/{model}/edited.html",
            caption="../report/models.rst",
            category="models",
            labels={"model": "{model}", "page": "edited"},
        ),
    log:
        "<logs>/models/{model}.edited.log",
    threads: 1
    resources:
        mem="4GB",
        runtime="10m",
    params:
        edit=config["edited"]["edit"],
        code=code_digest("jaxinterp.analysis.pages"),
    shell:
        "jaxinterp inspect {input.model:q} --edit {params.edit:q} --out {output.page:q} 2>&1 | tee {log:q}"
