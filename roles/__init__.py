"""What a node can be: miner, validator, API, inference server, and the referee they start."""
