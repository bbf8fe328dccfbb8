"""What notebooks use: showing library source, checking exercises, small widgets."""
