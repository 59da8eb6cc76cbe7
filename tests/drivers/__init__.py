"""Drivers without a VM, against small devices of our own."""
