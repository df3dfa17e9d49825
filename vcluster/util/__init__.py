"""What every layer uses: events, deadlines and parallel work."""
