"""Benchmarks: fastopt against the memory's speed and against other libraries, as ratios.

    cases ──► problem (parameters, gradients) ──► sides: fastopt, the ceiling, peers that are installed
                                                     │  check: all agree with fastopt in float64, slots included
                                                     └─ contest: all take turns in every round
                                                        ratios per round → median and interval → outcome

- A *case* is a row of one table: recipe (optimizer and hyper-parameters) x dtype x model x stack of options x device.
  Recipes follow from fastopt's classes. Cases on a GPU are timed by events, in another program: ``make gpu``.
- The *judge* of a case is fastopt itself in float64, which the tests hold against formulas from the papers.
- A *side* does the step of a case in its own way, on its own copy of the same arrays. `peers` has one module for each
  library, imported on use; what is not installed, or cannot do a case, is said, and the rest goes on.
- The *ceiling* is a side too: plain loops over as many arrays as the step has to read and write, started like a step.
  Where everything fits into a cache it is the cost of a launch and of the cache.
- Only ratios are judged, each the median of the ratios of single rounds, so that they hold while the machine's speed
  drifts. `gates` judges them against thresholds and against earlier runs of the same processor.
- Where rounds show that other programs took part, a case is not measured, and counts nowhere: `contest.disturbance`.

``fastopt bench`` and the benchmarks of the repository (``make bench``) are two users of this package.
"""
