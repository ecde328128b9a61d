"""The referee: a trusted process that fetches, checks, runs and times one submission, and judges it."""
