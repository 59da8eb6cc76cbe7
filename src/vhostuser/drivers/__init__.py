"""The driver half of devices, for use without a VM."""
