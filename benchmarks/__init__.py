"""Measure the speed, memory and detection quality of crossaudit."""
