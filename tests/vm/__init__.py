"""Stock QEMU as the peer: what it takes to run it, and a driver half over its qtest protocol."""
