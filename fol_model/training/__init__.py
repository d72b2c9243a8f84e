"""Learning the weights of a network: tensors in, weights out. `pipelines/train` brings the photos."""
