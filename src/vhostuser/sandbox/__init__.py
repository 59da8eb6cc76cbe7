"""Confine a daemon to the directory that it shares."""
