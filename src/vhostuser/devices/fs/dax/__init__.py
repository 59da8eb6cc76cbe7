"""The DAX window: what SETUPMAPPING and REMOVEMAPPING do, and what becomes of bytes that a guest stored there."""
