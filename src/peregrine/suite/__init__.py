"""Suites: several races that together answer a published study on this machine."""
