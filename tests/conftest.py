"""What every test-suite here relies on."""

from __future__ import annotations

from hypothesis import settings

# The same examples in every run: a change that breaks a property fails in the
# run that has the change. New examples are the fuzzer's business (tests/fuzz).
# No deadline: two cores are shared with builds, and a slow run is no failure.
settings.register_profile("tailnet", derandomize=True, deadline=None)
settings.load_profile("tailnet")
