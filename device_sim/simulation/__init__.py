"""Federated learning in one process: the shipped pure parts under a for-loop, without sockets, threads and SQLite."""
