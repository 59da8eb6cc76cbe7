"""A directory of the host, as requests of a guest's file system reach it: by open files, never by a path."""
