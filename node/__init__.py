"""The runtime of a node: bus, components, chain, HTTP, workers, sandbox; knows no tensors and no roles."""
