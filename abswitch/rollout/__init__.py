"""What should happen next in a switch: strategies, the state machine, and the assignment of units. Pure."""
