configfile: workflow.source_path("../config/self_verification.yaml")


VERDICTS = "<results>/verdicts/table.parquet"
HEADS = "<results>/ablation/table.parquet"
UNITS = "<results>/units/table.parquet"
PROBES = "<results>/probing/directions.safetensors"

read_paper(
    "self_verification",
    {
        "verdicts": part(priority=3),
        "probing": part(priority=2, arrays="directions", verdicts=VERDICTS),
        "units": part(priority=2, verdicts=VERDICTS, probes=PROBES),
        "ablation": part(priority=3, verdicts=VERDICTS),
        "lens": part(verdicts=VERDICTS, ablation=HEADS, units=UNITS),
        "channels": part(priority=1, verdicts=VERDICTS, ablation=HEADS, units=UNITS, probes=PROBES),
        "regeneration": part(priority=2, verdicts=VERDICTS, ablation=HEADS, units=UNITS),
        "sufficiency": part(priority=1, verdicts=VERDICTS, ablation=HEADS),
        "verdict_steering": part(verdicts=VERDICTS, probes=PROBES),
        "finetuning": part(priority=2, verdicts=VERDICTS, ablation=HEADS, units=UNITS),
        "in_context": part(),
    },
)
