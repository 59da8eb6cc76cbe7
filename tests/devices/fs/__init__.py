"""The file system device and its share."""
