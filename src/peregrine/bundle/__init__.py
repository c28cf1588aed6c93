"""The winner made deployable: a directory that `load` turns back into a session anywhere."""

from peregrine.bundle.load import load, open_session
from peregrine.bundle.manifest import Manifest, read
from peregrine.bundle.session import BundleSession, BundleWarning
from peregrine.bundle.write import write

__all__ = ["BundleSession", "BundleWarning", "Manifest", "load", "open_session", "read", "write"]
