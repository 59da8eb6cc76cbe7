"""The plain way of SHMEM_MAP and SHMEM_UNMAP: what is entirely right, in as few steps as Python can."""
