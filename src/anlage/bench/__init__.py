"""Measurements that users run on their own machine and slides."""
