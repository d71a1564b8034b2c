configfile: workflow.source_path("../config/self_verification.yaml")


VERDICTS = "<results>/verdicts/table.parquet"
HEADS = "<results>/ablation/table.parquet"
UNITS = "<results>/units/table.parquet"
PROBES = "<results>/probing/directions.safetensors"

read_paper(
    "self_verification",
    {
        "verdicts": part(),
        "probing": part(arrays="directions", verdicts=VERDICTS),
        "units": part(verdicts=VERDICTS, probes=PROBES),
        "ablation": part(verdicts=VERDICTS),
        "lens": part(verdicts=VERDICTS, ablation=HEADS, units=UNITS),
        "channels": part(verdicts=VERDICTS, ablation=HEADS, units=UNITS, probes=PROBES),
        "regeneration": part(verdicts=VERDICTS, ablation=HEADS, units=UNITS),
        "sufficiency": part(verdicts=VERDICTS, ablation=HEADS),
        "verdict_steering": part(verdicts=VERDICTS, probes=PROBES),
        "finetuning": part(verdicts=VERDICTS, ablation=HEADS, units=UNITS),
        "in_context": part(),
    },
)
