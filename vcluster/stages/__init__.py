"""Steps of a create: proof of the tunnels; then boot, configuration, check, path and provisioning of the nodes."""
