"""Moves and computes: tensors, threads, copies. Carries out what plan/ decides and decides nothing itself."""
