"""What the experiments on self-verification share: their cases, and the parts that one module could not hold."""
