"""The axis, the cap, the cap neuron."""
