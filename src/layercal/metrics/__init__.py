"""What is measured of readings, with intervals, floors and tests."""
