"""The winner of a race made into a bundle."""

from __future__ import annotations

from pathlib import Path

from peregrine import bundle
from peregrine.fingerprint import current
from peregrine.harness.reference import Judging
from peregrine.harness.rundir import RunDirectory
from peregrine.harness.trial import Setting
from peregrine.model.model import Model
from peregrine.results import Report
from peregrine.types import Candidate
