"""The miner's inference server: HTTP in front of a language model in a worker process."""
