"""Predicted beside measured: tables of runs, calibration, the verdict on first iterations."""
