"""The subnet API: takes submissions, hands them to validators, stores what they found, shows the standing."""
