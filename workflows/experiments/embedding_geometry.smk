configfile: workflow.source_path("../config/embedding_geometry.yaml")


read_paper(
    "embedding_geometry",
    {
        "alignment": part(arrays="maps"),
        "steering": part(alignment="<results>/alignment/maps.safetensors"),
    },
)
