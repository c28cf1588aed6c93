"""The inference workflows, one module each, behind the contract in `base`."""
