"""What a race finds: the records behind `results.jsonl` and `report.json`.

Plain dataclasses, so that a worker in any interpreter can make them. Times are milliseconds
where the name ends in `_ms`, seconds in `_s`; memory is MiB (2**20 bytes) in `_mb`.
"""

from peregrine.results.accuracy import (
    Guard,
    LabelledAccuracy,
    OutputComparison,
    Validation,
    Verdict,
)
from peregrine.results.conversion import (
    CalibratorTrial,
    Conversion,
    KeptLayer,
    Repair,
    RepairStep,
)
from peregrine.results.encoding import NOT_ALWAYS_FINITE, from_builtins, to_builtins
from peregrine.results.measurement import (
    Boundary,
    Concurrency,
    DeviceConditions,
    LatencyMs,
    Measurement,
    Memory,
)
from peregrine.results.report import (
    REPORT_FORMAT,
    CandidateResult,
    Comparison,
    EngineOrigin,
    FinalRound,
    MachineRecord,
    ModelRecord,
    ReferenceRecord,
    Report,
    Status,
    SweepEnd,
    Winner,
)

__all__ = [
    "NOT_ALWAYS_FINITE",
    "REPORT_FORMAT",
    "Boundary",
    "CalibratorTrial",
    "CandidateResult",
    "Comparison",
    "Concurrency",
    "Conversion",
    "DeviceConditions",
    "EngineOrigin",
    "FinalRound",
    "Guard",
    "KeptLayer",
    "LabelledAccuracy",
    "LatencyMs",
    "MachineRecord",
    "Measurement",
    "Memory",
    "ModelRecord",
    "OutputComparison",
    "ReferenceRecord",
    "Repair",
    "RepairStep",
    "Report",
    "Status",
    "SweepEnd",
    "Validation",
    "Verdict",
    "Winner",
    "from_builtins",
    "to_builtins",
]
