configfile: workflow.source_path("../config/embedding_geometry.yaml")


MAPS = "<results>/alignment/maps.safetensors"

read_paper(
    "embedding_geometry",
    {
        "global_geometry": part(),
        "alignment": part(arrays="maps"),
        "local_geometry": part(),
        "intrinsic_dimension": part(),
        "hidden_states": part(arrays="maps", alignment=MAPS),
        "steering": part(alignment=MAPS, hidden_states="<results>/hidden_states/maps.safetensors"),
        "within_family": part(),
    },
)


# All tokens of one model: `whole_vocabulary` for the largest of them, half an hour of one core's work and resumable.
rule whole_vocabulary:
    input:
        "<results>/whole_vocabulary/gemma3.done",
    localrule: True


rule measure_vocabulary:
    input:
        model="<resources>/models/{model}",
    output:
        done=touch("<results>/whole_vocabulary/{model}.done"),
    log:
        "<logs>/whole_vocabulary/{model}.log",
    threads: 2
    resources:
        mem=config["memory"],
        runtime="90m",
    params:
        folder=lambda wildcards, output: str(Path(output.done).with_suffix("")),
        code=code_digest("jaxinterp.analysis.vocabulary_blocks"),
    shell:
        "jaxinterp neighbours {input.model:q} --output {params.folder:q} 2>&1 | tee {log:q}"


# The shipped models of one family, trained anew.
SMALL = [f"small-{kind}-{seed}" for kind in ("narrow", "wide", "untied") for seed in (0, 1)]


rule small_models:
    input:
        expand("<results>/small_models/{name}/config.json", name=SMALL),
    localrule: True


rule train_small_model:
    output:
        "<results>/small_models/{name}/config.json",
    log:
        "<logs>/small_models/{name}.log",
    wildcard_constraints:
        name="|".join(SMALL),
    threads: 1
    resources:
        mem="3GB",
        runtime="30m",
    params:
        recipe=lambda wildcards: str(ROOT / "jaxinterp" / "data" / "checkpoints" / wildcards.name / "recipe.json"),
        folder=subpath(output[0], parent=True),
        code=code_digest("jaxinterp.training.language_model"),
    shell:
        "jaxinterp train {params.recipe:q} --output {params.folder:q} 2>&1 | tee {log:q}"
