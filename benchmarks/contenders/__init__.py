"""The clients that are compared, by name: how to start each."""
