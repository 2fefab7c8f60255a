"""Sweeps: one parent run, a child run for each job, the winner released once."""
