"""Hold either side of a connection to the specification, rule by rule."""
