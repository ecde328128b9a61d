"""Speed of the subnet API: the real process, loaded from a second one over loopback."""
