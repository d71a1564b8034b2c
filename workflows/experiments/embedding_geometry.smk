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
