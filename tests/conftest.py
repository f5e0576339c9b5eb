"""What every test-suite here relies on."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every run: a change that breaks a property fails in the
# run that has the change. New examples are the fuzzer's business (tests/fuzz).
# No deadline: two cores are shared with builds, and a slow run is no failure.
settings.register_profile("tailnet", derandomize=True, deadline=None)
settings.load_profile("tailnet")

# Whoever runs the tests behind a proxy: their connections are none of its.
for _name in ("http_proxy", "https_proxy", "no_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)
