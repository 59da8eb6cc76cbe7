pytest_plugins = ["vhostuser.testing.fixtures"]
