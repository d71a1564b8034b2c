refuse_unknown_keys(
    config["distributed"],
    {
        "properties": dict.fromkeys(["sweep", "prompts", "processes", "memory", "coordinator"], {}),
        "additionalProperties": False,
    },
    "distributed",
)


# Not part of `all`: a sweep that several hosts share, one process each. It runs outside of the image, for srun is there;
# srun starts every process in the image. Ended and sent again, it goes on with the blocks that it had finished.
rule distributed:
    output:
        prompts="<results>/distributed/prompts.txt",
        table="<results>/distributed/table.parquet",
    log:
        "<logs>/distributed.log",
    retries: 1
    container:
        None if containers_are_used() else image()
    threads: 1
    resources:
        **srun_resources(),
        mem=config["distributed"]["memory"],
        runtime="1h",
    params:
        prompts=config["distributed"]["prompts"],
        sweep=srun_words() + ["jaxinterp", "sweep"] + shlex.split(config["distributed"]["sweep"]),
        distributed="--distributed" if config["distributed"]["processes"] > 1 else [],
        code=code_digest("jaxinterp.cli.devices"),
    shell:
        "printf '%s\\n' {params.prompts:q} > {output.prompts:q}\n"
        "{params.sweep:q} --prompts {output.prompts:q} {params.distributed:q} --output {output.table:q} 2>&1 | tee {log:q}"
