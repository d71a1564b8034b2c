"""What a workload takes on a Cloud TPU slice: compiled by the TPU's own compiler, from a config.json, without a TPU."""
