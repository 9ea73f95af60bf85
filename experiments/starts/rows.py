"""Rows of the table, and the spans that some of them are told by."""

from __future__ import annotations

PROCESS, LOAD, FORM, WHOLE = (
    "order to registered",
    "registered to loaded",
    "loaded to serving",
    "whole",
)
MADE, IMPORTS, REGISTERS = (
    "· until its process runs",
    "· its first imports",
    "· its machine found, registered",
)
OPENS, ARITHMETIC, WEIGHTS, PACKS, TESTS, TOLD = (
    "· torch imported, model opened",
    "· kernels and their fingerprint",
    "· weights from the mesh's store",
    "· packed",
    "· self-test",
    "· asked and answered",
)
OF_LOAD = {
    "engine.load.open": OPENS,
    "engine.load.arithmetic": ARITHMETIC,
    "engine.load.weights": WEIGHTS,
    "engine.load.pack": PACKS,
    "engine.load.self_test": TESTS,
}
DISK, PEER, S3 = (
    "half the weights, of the node's disk",
    "half the weights, of another node",
    "half the weights, of S3",
)
SIMULATED_ROWS = (PROCESS, LOAD, FORM, WHOLE)
ROWS = (
    PROCESS,
    *(MADE, IMPORTS, REGISTERS),
    LOAD,
    *OF_LOAD.values(),
    TOLD,
    FORM,
    WHOLE,
    *(DISK, PEER, S3),
)
"""Behind and between those that are simulated, what only a real mesh tells."""
