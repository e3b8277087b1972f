"""Noise processes, schedules and samplers: the one place that knows sigma."""
