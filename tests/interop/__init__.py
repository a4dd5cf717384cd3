"""Tests with servers of other projects. conftest.py says how to install the servers."""
