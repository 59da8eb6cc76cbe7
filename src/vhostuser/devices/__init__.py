"""Devices that come with the package."""
