"""A directory shared with the guest: the device behind `vhu-fs` ("File System Device")."""
