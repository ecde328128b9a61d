"""Measurements that are too long or too demanding for the tests."""
