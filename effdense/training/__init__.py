"""Training mechanics: functions that a loop calls."""
