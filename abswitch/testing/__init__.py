"""What tests and first steps need: tiny models with known quality, contract suites, and a checker of histories."""
