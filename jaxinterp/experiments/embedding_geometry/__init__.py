"""What the experiments on embedding geometry share: the tokens, and the parts that one module could not hold."""
