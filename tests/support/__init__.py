"""Helpers of several tests: peers, proxies, spies, guards, a model of TCP."""
