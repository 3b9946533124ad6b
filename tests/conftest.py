"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("laneway", deadline=None, print_blob=True)
# For hunting: pytest tests/laws --hypothesis-profile=thorough
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=2000)
settings.load_profile("laneway")
