"""Benchmarks: how exact and how fast, as ratios to a peer measured in the same run. ``python -m benchmarks --help``.

Every benchmark is a module of this package with

- a docstring, whose first line says what is measured;
- ``FULL`` and ``QUICK``, its settings (a frozen dataclass); the quick ones only show that it runs;
- ``run(settings, say) -> dict``, which measures; everything in the answer is plain JSON;
- ``report(settings, result) -> str``, Markdown.

Times are CPU seconds of one thread (``time.process_time``), which other work on the machine disturbs least; wall-clock seconds
stand beside them.
"""

NAMES = (
    "neurons",
    "steps",
    "turning",
    "ensemble",
    "algorithm1",
    "large",
    "ranks",
    "costs",
    "versions",
    "recorder",
    "record",
    "agreement",
    "coverage",
    "limits",
    "scatter",
    "referee",
)
"""The benchmarks, in the order of the report."""
