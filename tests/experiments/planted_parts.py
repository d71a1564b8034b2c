"""Tables as the experiments on heads and on units give them, with the heads and units that one wants."""

import polars as pl


def of_heads(target=((4, 5), (4, 0)), circuit=((4, 5), (4, 7)), paper=()):
    """As from `ablation`, for `ablation.found`."""
    sets = {"paper": paper, "target": target, "circuit": circuit}
    rows = [
        {"measure": "rank", "condition": name, "layer": layer, "head": head, "value": float(rank)}
        for name, some in sets.items()
        for rank, (layer, head) in enumerate(some)
    ]
    schema = {"measure": pl.String, "condition": pl.String, "layer": pl.Int64, "head": pl.Int64, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema)


def of_units(valid=((5, 3), (6, 100)), invalid=((5, 4), (7, 8))):
    """As from `units`, for `units.found`."""
    return pl.DataFrame(
        [
            {"part": "unit", "measure": "cosine", "list": "cosine", "polarity": polarity}
            | {"layer": layer, "unit": unit, "rank": rank}
            for polarity, some in (("valid", valid), ("invalid", invalid))
            for rank, (layer, unit) in enumerate(some)
        ]
    )
