"""Measures what the workbench claims, each figure by one command and in one form (`python -m benchmarks`)."""
