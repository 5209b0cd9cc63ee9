"""Benchmarks: fastopt against the memory's speed and against other libraries, as ratios.

    cases ──► problem (parameters, gradients) ──► sides: fastopt, the ceiling, peers that are installed
                                                     │  check: all agree with NumPy in float64, slots included
                                                     └─ contest: all take turns in every round
                                                        ratios per round → median and interval → outcome

- A *case* is a row of one table: recipe (optimizer and hyper-parameters) x dtype x model x stack of options x device.
  Another axis is another field. Cases on a GPU are timed by events, in another program: ``make gpu``.
- A *side* does the step of a case in its own way, on its own copy of the same arrays. `peers` has one module for each
  library, imported on use; what is not installed, or cannot do a case, is said, and the rest goes on.
- The *ceiling* is a side too: plain loops over as many arrays as the step has to read and write, started like a step.
  Where everything fits into a cache it is the cost of a launch and of the cache.
- Only ratios are judged, each the median of the ratios of single rounds, so that they hold while the machine's speed
  drifts. `gates` judges them against thresholds and against earlier runs.

``fastopt bench`` and the benchmarks of the repository (``make bench``) are two users of this package.
"""
