"""The data column: virtqueues and what travels in them, with nothing of vhost-user."""
