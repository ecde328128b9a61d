"""A complete subnet on this machine: API, validator and three miners as processes of their own."""
