"""Pure functions from the plan to the texts that libvirt and the guests read."""
