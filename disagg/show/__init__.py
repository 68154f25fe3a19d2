"""Draws and teaches: reads timelines and metrics, drives Engine, never touches a worker."""
