"""Trainings in several processes: on this machine, and as jobs of clusters."""
