"""The commands: `vhu` and the daemons."""
