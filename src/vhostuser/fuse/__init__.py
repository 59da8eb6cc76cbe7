"""The FUSE protocol as virtio-fs carries it: numbers, structs, and what each request is made of. Pure."""
