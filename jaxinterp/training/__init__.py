"""Training: packed texts, optimisers and loops on the Flax NNX decoder, and what leaves them as a model folder."""
