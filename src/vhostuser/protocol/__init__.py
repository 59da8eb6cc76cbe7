"""The control column: vhost-user messages and their rules, with no socket, fd, clock or log."""
