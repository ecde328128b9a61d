"""Benchmarks that are no command of quasar-node."""
