"""A hostile peer for other people's implementations: valid conversations, made wrong, by a seed."""
