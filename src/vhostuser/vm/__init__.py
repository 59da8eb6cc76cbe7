"""A VM: QEMU and a Linux guest fetched without root, booted, and given commands."""
