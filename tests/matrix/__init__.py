"""The matrix of real peers: each is held to the specification, and what came of it is written down."""
