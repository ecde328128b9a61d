"""The miner: finds kernels, verifies them with the validator's referee, and submits by commit and reveal."""
