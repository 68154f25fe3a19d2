"""Decides: pure bookkeeping and policy. Standard library only; time is an argument, in integer nanoseconds."""
