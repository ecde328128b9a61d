"""A subtensor node on loopback: real transport, codec and signatures over the local chain's rules."""
