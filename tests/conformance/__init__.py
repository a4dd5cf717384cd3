"""The package against Workers, scenario by scenario. How to run that: conftest.py."""
