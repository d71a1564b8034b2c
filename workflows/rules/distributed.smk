refuse_unknown_keys(
    config["distributed"],
    {"properties": dict.fromkeys(["command", "processes", "memory", "coordinator"], {}), "additionalProperties": False},
    "distributed",
)


# Not part of `all`: one job of several processes, one a host, which jax.distributed joins; the first of them writes.
# It runs outside of the image, for srun is there; srun starts every process in the image.
rule distributed:
    output:
        record="<results>/distributed/record.json",
    log:
        "<logs>/distributed.log",
    retries: 1
    container:
        None
    threads: 1
    resources:
        **srun_resources(),
        mem=config["distributed"]["memory"],
        runtime="30m",
    params:
        command=srun_words() + shlex.split(config["distributed"]["command"]),
        code=code_digest("jaxinterp"),
    shell:
        "{params.command:q} --output {output.record:q} 2>&1 | tee {log:q}"
