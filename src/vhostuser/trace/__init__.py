"""See a connection: pass its messages on, write them down, read them again, draw them."""
