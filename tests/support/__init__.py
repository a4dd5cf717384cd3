"""What several tests use: peers, proxies, spies, guards, a model of TCP."""
