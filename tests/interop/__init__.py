"""The package against servers that other people wrote. How to install them: conftest.py."""
