"""Compares the package with Workers, scenario by scenario. conftest.py says how to run this."""
