"""FUSE on the wire, and the device that serves it."""
