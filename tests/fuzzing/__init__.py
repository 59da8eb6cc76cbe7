"""`vhu fuzz`: what it finds, and that it finds nothing where nothing is."""
