"""Events, deadlines and parallel work, for every layer."""
